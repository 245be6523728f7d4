"""Why Ansible does not get to a host, or is not root there."""

from __future__ import annotations

import re

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, told


def unreachable(said: str) -> Problem:
    """Why SSH does not get there."""
    words = " ".join(re.split(r"via ssh:|over ssh:", said)[-1].split())  # behind Ansible's own
    fix = "try it by hand: ssh USER@ADDRESS; then correct ansible_host, ansible_port or ansible_user in the inventory"
    for pattern, more in (
        (
            "permission denied",
            "give the host your public key (ssh-copy-id), or name a key by ansible_ssh_private_key_file",
        ),
        (
            "host key verification",
            "log in once by hand and compare the key that it shows; for a host that was reinstalled, "
            "ssh-keygen -R ADDRESS comes first",
        ),
        ("could not resolve|name or service", "correct the name, or give the address as ansible_host"),
        ("timed out|no route", "start the host, open its firewall for SSH, or correct ansible_host or ansible_port"),
        ("refused", "start the host or its sshd, or correct ansible_port"),
    ):
        if re.search(pattern, words, re.IGNORECASE):
            fix = more
            break
    if "IDENTIFICATION HAS CHANGED" in words:  # in a frame of lines
        words = "Host key verification failed: its key is not the one of the last time"
    return Problem("reach", "connection", told(words), "an answer over SSH", fix)


def refused_root(said: str) -> Problem | None:
    """Why there is no root, or nothing where that is not what failed."""
    for pattern, found, fix in (
        (
            r"missing sudo password|a password is required|a terminal is required",
            "sudo asks for a password",
            "add --ask-become-pass (-K), or let this user use sudo without one (NOPASSWD)",
        ),
        (
            r"incorrect sudo password|sorry, try again",
            "sudo does not take the password that was given",
            "give the right one with --ask-become-pass (-K): it is the password of the user on the host",
        ),
        (
            r"sudo: (command )?not found|sudo: No such file",
            "there is no sudo on the host",
            "apt-get install sudo there, or log in as root with ansible_user: root",
        ),
        (
            r"not in the sudoers file|not allowed to (execute|run sudo)|may not run sudo",
            "this user may not use sudo",
            "add it to the group sudo, or log in as one that may, with ansible_user",
        ),
        (r"waiting for privilege escalation", "sudo asks for something and waits", "see what sudo -n true says there"),
    ):
        if re.search(pattern, said, re.IGNORECASE):
            return Problem("root", "sudo", found, "root on the host: by sudo, or by logging in as root", fix)
    return None


def no_python(said: str) -> Problem | None:
    """Whether the host lacks Python."""
    if not re.search(r"interpreter .* was not found|python3?[\d.]*: (command )?not found|No such file.*python", said):
        return None
    return Problem(
        "python",
        "Python",
        "none",
        "Python 3.10 or later, with which Ansible works on a host",
        "apt-get install python3 there, or name another by ansible_python_interpreter",
    )
