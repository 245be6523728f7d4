"""The engine as one file that a service can run after Ansible has left."""

from __future__ import annotations

import io
import pkgutil
import zipfile

from ansible_collections.wanmetal.comfyui.plugins.module_utils import downloads
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import cli
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import files, units

# Ansible sends a module only what is imported, so the name of the module comes from an import.
_MAIN = f"import sys\nfrom {cli.__name__} import main\nsys.exit(main(sys.argv[1:]))\n"
# The same sources make the same bytes.
_DATE = (2020, 1, 1, 0, 0, 0)


def build() -> bytes:
    """Pack this package and what it uses of others, whether they lie in a folder or in Ansible's own archive."""
    sources = {"__main__.py": _MAIN}
    own = [f"{downloads.__name__}.{module.name}" for module in pkgutil.iter_modules(downloads.__path__)]
    for name in [*own, files.__name__, units.__name__]:
        package, _, module_name = name.rpartition(".")
        folders = package.split(".")
        for depth in range(len(folders)):
            sources["/".join([*folders[: depth + 1], "__init__.py"])] = ""
        data = pkgutil.get_data(package, f"{module_name}.py") or b""
        sources[f"{'/'.join(folders)}/{module_name}.py"] = data.decode()
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as out:
        for name, text in sorted(sources.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(entry, text)
    return packed.getvalue()
