"""Attribution: what each part of the model adds to a target, in sums that close."""

from tl_bilinear.attribution.components import ComponentAttribution as ComponentAttribution
from tl_bilinear.attribution.components import attribute_components as attribute_components
from tl_bilinear.attribution.modes import Attribution as Attribution
from tl_bilinear.attribution.modes import attribute_modes as attribute_modes
from tl_bilinear.attribution.reading import Example as Example
from tl_bilinear.attribution.reading import TokenReading as TokenReading
from tl_bilinear.attribution.reading import mode_activations as mode_activations
from tl_bilinear.attribution.reading import reading_tokens as reading_tokens
from tl_bilinear.attribution.reading import top_examples as top_examples
