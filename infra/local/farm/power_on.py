"""What happens when a machine gets power: namespaces, network, root file system, then its boot program.

Started by the farm with the machine's description (JSON, see `machine.py`) on standard input; the console is its
output. This process is the power supply: it stays outside, waits for the boot program (the machine's process 1)
and ends with it. It dies with the farm, process 1 dies with it, and the kernel ends every other process of the machine.

The root file system is a small tmpfs with read-only views of this computer's system and of the image; nothing of the
repository or of other machines is in it. Process 1 starts without the capabilities by which root could leave:
no mounts, no device nodes, no kernel modules, no network configuration.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

# What root on a machine may do. Left out are sys_admin, mknod, net_admin, sys_module, sys_rawio, dac_read_search, ...
_CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw",
    "ipc_lock", "sys_chroot", "sys_nice", "sys_resource", "sys_ptrace", "audit_write",
)  # fmt: skip

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives", "ca-certificates", "libibverbs.d", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "openmpi", "protocols", "services", "ssl",
)  # fmt: skip
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
_PROC_HIDDEN = ("kcore", "keys", "timer_list", "sched_debug")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Bring the machine up, wait for its end, return its status."""
    machine = json.load(sys.stdin)
    _die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET), "unshare")
    _plug_in(machine)
    socket.sethostname(machine["hostname"])
    _check(_libc.unshare(_CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        _die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _boot(machine)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    return abs(os.waitstatus_to_exitcode(status))


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _plug_in(machine: dict[str, Any]) -> None:
    """A veth pair: one end in the fabric's bridge, the other is our eth0."""
    port, fabric = machine["name"], machine["fabric"]
    inside_fabric = ["nsenter", f"--net=/proc/{fabric['pid']}/ns/net", "--", "ip"]
    # the port of the machine's former life may still be there: the kernel removes it in the background
    subprocess.run([*inside_fabric, "link", "delete", port], capture_output=True, check=False)
    subprocess.run(
        [*inside_fabric, "-batch", "-"],
        input=f"link add {port} type veth peer name eth0 netns {os.getpid()}\n"
        f"link set {port} master {fabric['bridge']} addrgenmode none up\n",
        text=True,
        check=True,
    )
    subprocess.run(
        ["ip", "-batch", "-"],
        input=f"link set lo up\nlink set eth0 address {machine['mac']} addrgenmode none\n"
        f"address add {machine['address']}/{fabric['prefix_length']} dev eth0\nlink set eth0 up\n",
        text=True,
        check=True,
    )


def _boot(machine: dict[str, Any]) -> NoReturn:
    """Build the root file system, move into it, become the boot program."""
    root = Path(machine["root"])
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _tmpfs(root, "mode=755,size=64m")
    _bind_system(root, machine)
    _make_devices(root / "dev")
    _make_kernel_views(root)
    for name, options in (("run", "mode=755,size=1g"), ("tmp", "mode=1777,size=2g"), ("root", "mode=700,size=1g")):
        _tmpfs(root / name, options)
    _bind_interpreter(root, machine["image_dir"])
    _make_scratch(root / "scratch", machine)
    _write_files(root, machine)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    os.setsid()
    kept = ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES)])
    os.execve(  # noqa: S606 - this process becomes the machine's first one
        "/usr/bin/setpriv",
        [
            "setpriv",
            f"--bounding-set={kept}",
            "--inh-caps=-all",
            "--",
            "/opt/image/bin/python",
            "-I",
            "-S",
            "/boot/boot.py",
        ],
        {"PATH": "/opt/image/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
    )


def _bind_system(root: Path, machine: dict[str, Any]) -> None:
    for path in map(Path, _SYSTEM):
        target = root / path.relative_to("/")
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            _bind_read_only(path, target)
    _tmpfs(root / "etc", "mode=755,size=16m")
    for name in _ETC:
        source, target = Path("/etc") / name, root / "etc" / name
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            _bind_read_only(source, target)
        elif source.exists():
            shutil.copyfile(source, target)
    _tmpfs(root / "var", "mode=755,size=256m")
    for name in ("tmp", "log", "lib", "cache"):
        (root / "var" / name).mkdir()
    _bind_read_only(Path(machine["image_dir"]), root / "opt/image")
    _bind_read_only(Path(machine["boot_program"]), root / "boot/boot.py")


def _bind_interpreter(root: Path, image_dir: str) -> None:
    """The image is a virtual environment: the Python it was made from must be at its own place."""
    for line in (Path(image_dir) / "pyvenv.cfg").read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home":
            prefix = Path(value.strip()).resolve().parent
            if prefix != Path("/usr"):
                _bind_read_only(prefix, root / prefix.relative_to("/"))


def _make_devices(dev: Path) -> None:
    _tmpfs(dev, "mode=755,size=1m", _MS_NOEXEC)
    for name in _DEVICES:
        (dev / name).touch()
        _mount(f"/dev/{name}", str(dev / name), "", _MS_BIND)
    (dev / "pts").mkdir()
    _mount("devpts", str(dev / "pts"), "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    _tmpfs(dev / "shm", "mode=1777,size=4g", _MS_NOEXEC)
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        (dev / name).symlink_to(target)


def _make_kernel_views(root: Path) -> None:
    """/proc and /sys of these namespaces, without the handles by which one changes or reads the whole computer."""
    for name, flags in (("proc", 0), ("sys", _MS_RDONLY)):
        (root / name).mkdir()
        _mount(
            name, str(root / name), f"{name}fs" if name == "sys" else name, flags | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        )
    for path in (root / "proc" / name for name in _PROC_READ_ONLY):
        if path.exists():
            _bind_read_only(path, path)
    for path in (root / "proc" / name for name in _PROC_HIDDEN):
        if path.exists():
            _mount("/dev/null", str(path), "", _MS_BIND)


def _make_scratch(target: Path, machine: dict[str, Any]) -> None:
    if machine["scratch_mib"]:
        _tmpfs(target, f"mode=755,size={int(machine['scratch_mib'])}m")
        return
    target.mkdir()
    _mount(machine["scratch"], str(target), "", _MS_BIND)
    _mount("none", str(target), "", _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_NODEV)


def _write_files(root: Path, machine: dict[str, Any]) -> None:
    for path, text in machine["files"].items():
        target = root / path.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.touch(mode=0o600 if path.startswith("/run/") else 0o644)
        target.write_text(text)


def _bind_read_only(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), str(target), "", _MS_BIND)
    _mount("none", str(target), "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _tmpfs(target: Path, options: str, flags: int = 0) -> None:
    target.mkdir(exist_ok=True)
    _mount("tmpfs", str(target), "tmpfs", flags | _MS_NOSUID | _MS_NODEV, options)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    done = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(done, f"mount {source} on {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
