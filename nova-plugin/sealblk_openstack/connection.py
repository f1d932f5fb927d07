"""From Cinder's connection_info to what the agent must know of a volume.

Contract: pure functions of connection_info (and one stat of a path). What can't be expressed is
refused, never left out: a limit or a read-only mark that gets lost would not be noticed.
"""

import os
import stat

import nova.conf
from oslo_log import log as logging

from sealblk_openstack import errors

LOG = logging.getLogger(__name__)

# Where the socket of a served volume stands in connection_info['data']: the only thing that this
# plugin adds to it (Nova saves connection_info in its database and sends it between hosts).
SOCKET = "sealblk_socket"

_RATES = [f"{o}_{unit}_sec" for o in ("total", "read", "write") for unit in ("bytes", "iops")]
LIMITS = [rate + suffix for rate in _RATES for suffix in ("", "_max", "_max_length")]


def source(connection_info, volume):
    """The agent's ``source``: by path where os-brick or the driver made one, rbd natively."""
    data = connection_info["data"]
    path = data.get("device_path")
    if path:
        return _path(data, str(path), volume)
    if connection_info.get("driver_volume_type") == "rbd":
        return _rbd(data, volume)
    raise errors.Refused(
        f"Volume {volume}: sealblk can't serve volumes of type {connection_info.get('driver_volume_type')}"
    )


def _path(data, path, volume):
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        mode = stat.S_IFBLK  # the agent may look, and will tell
    except OSError as e:
        raise errors.VolumeTrouble(volume, f"{path}: {e}") from e
    if stat.S_ISBLK(mode):
        return {"kind": "device", "path": path}
    if data.get("format") not in (None, "raw"):
        raise errors.Refused(
            f"Volume {volume}: it is a file of format {data['format']}; sealblk serves raw ones only"
        )
    return {"kind": "file", "path": path}


def _rbd(data, volume):
    found = {"kind": "rbd", "image": str(data.get("name") or "")}
    if found["image"].count("/") < 1:
        raise errors.Refused(f"Volume {volume}: Cinder's connection names no pool and image")
    hosts, ports = data.get("hosts") or [], data.get("ports") or []
    if hosts:
        found["mon_hosts"] = [_host(h, p) for h, p in zip(hosts, ports)]
    # As Nova's driver does: Cinder's user, else the one of nova.conf.
    user = data.get("auth_username") if data.get("auth_enabled") else None
    user = user or nova.conf.CONF.libvirt.rbd_user
    if user:
        found["user"] = str(user)
    cluster = data.get("cluster_name")
    if cluster and cluster != "ceph":
        found["conf"] = f"/etc/ceph/{os.path.basename(str(cluster))}.conf"
    return found


def _host(host, port):
    host = str(host).strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def limits(connection_info, volume):
    """The front-end ``qos_specs`` as numbers."""
    specs = connection_info["data"].get("qos_specs") or {}
    found = {}
    for name, value in specs.items():
        if name not in LIMITS:
            LOG.warning(
                "volume %s: qos_specs %s=%s has no meaning for sealblk", volume, name, value
            )
            continue
        try:
            found[name] = int(str(value))
        except ValueError:
            found[name] = -1
        if not 0 <= found[name] < 2**63:
            raise errors.Refused(
                f"Volume {volume}: its type's qos_specs {name} is no number: {value}"
            )
    return found


def read_only(connection_info, volume):
    mode = connection_info["data"].get("access_mode") or "rw"
    if mode not in ("ro", "rw"):
        raise errors.Refused(f"Volume {volume}: unknown access_mode {mode}")
    return mode == "ro"
