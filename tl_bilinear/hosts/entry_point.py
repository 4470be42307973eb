"""What TransformerLens loads by itself where tl_bilinear is installed but not imported.

TransformerLens imports the entry points of `transformer_lens.architectures` when the first
bridge is booted, before the bridge's components are set up: importing this module is enough
for identity-gated models to stay bilinear in compatibility mode. With TL_BILINEAR_DISABLE=1 in
the environment it changes nothing.
"""

import os

from tl_bilinear.hosts.native import NativeBilinearAdapter as NativeBilinearAdapter
from tl_bilinear.hosts.registration import register

if os.environ.get("TL_BILINEAR_DISABLE", "0") in ("", "0"):
    register()
