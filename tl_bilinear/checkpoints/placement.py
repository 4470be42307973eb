"""Where a model's weights go: `device`, or `device_map` in transformers' terms."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]


@dataclass(frozen=True)
class Placement:
    device: str
    """Where everything goes; the first device of a map over several."""
    device_map: str | dict[str, str] | None = None
    """transformers' own argument, where several devices share the model."""

    def require_single(self, kind: str, way_out: str) -> None:
        """Raise ValueError for a map over several devices, for a model that cannot be split."""
        if self.device_map is not None:
            raise ValueError(
                f"a {kind} stands on one device, got device_map {self.device_map!r}: {way_out}"
            )


def placement(
    device: str | None, device_map: DeviceMap | None, accelerators: int | None = None
) -> Placement:
    """One device out of `device` and `device_map`, or a map for transformers.

    Args:
        accelerators: how many GPUs there are; asked of torch where it is None.

    Raises:
        ValueError: both at once, a device that this machine does not have, or weights that
            would not be there to read ("meta", "disk").
    """
    if device is not None and device_map is not None:
        raise ValueError(
            f"give `device` or `device_map`, not both: got {device!r} and {device_map!r}"
        )
    count = torch.cuda.device_count() if accelerators is None else accelerators
    if device_map is None:
        return Placement(_single(device or "cpu", "device"))
    if isinstance(device_map, str) and device_map in STRATEGIES:
        if count > 1:
            return Placement("cuda:0", device_map)
        return Placement("cuda:0" if count else "cpu")
    if not isinstance(device_map, Mapping):
        return Placement(_single(device_map, "device_map"))
    if not device_map:
        raise ValueError('`device_map` is empty: give {"": "cpu"} for all of the model')
    devices = {str(name): _single(value, "device_map") for name, value in device_map.items()}
    several = sorted(set(devices.values()))
    if len(several) == 1:
        return Placement(several[0])
    if "cpu" in several:
        raise ValueError(
            f"`device_map` spreads the model over {several}: a TransformerBridge cannot be split "
            'between the CPU and GPUs; give one device ({"": "cpu"}) or GPUs alone'
        )
    return Placement(next(iter(devices.values())), devices)


def _single(value: object, argument: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"cuda:{value}"
    if str(value) in ("meta", "disk"):
        raise ValueError(
            f"`{argument}` names {str(value)!r}, where the weights are not in memory: they are "
            "read, checked and decomposed, so give a device that holds them"
        )
    try:
        found = torch.device(value)  # pyright: ignore[reportArgumentType, reportCallIssue]
        torch.empty(0, device=found)
    # Unknown names, absent devices and missing drivers raise what they like.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"`{argument}` names {value!r}, which this machine cannot use ({reason}): give "
            '"cpu", or a device that torch finds'
        ) from None
    return str(found)
