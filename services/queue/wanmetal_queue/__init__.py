"""The queue of a fleet: RunPod's serverless protocol for clients and for workers, on PostgreSQL."""
