"""All numbers of a report as plain data, for machines and for comparing hosts."""

from typing import Any

from tl_bilinear.report.measure import LayerReport, ModeReport, Report


def report_numbers(report: Report) -> dict[str, Any]:
    """What stands on the page as JSON under the id "report-data"; logits throughout."""
    source = report.components.provenance
    return {
        "format": 1,
        "model": source.model,
        "fingerprint": source.fingerprint,
        "host": source.host,
        "versions": source.versions,
        "dtype": report.dtype,
        "shape": report.shape,
        "prompt": report.question.prompt,
        "target": report.question.words,
        "tokens": list(report.tokens),
        "self_check": _self_check(report),
        "predictions": [
            {"token": p.token, "probability": p.probability, "logit": p.logit}
            for p in report.predictions
        ],
        "components": _components(report),
        "site": report.components.sites[report.site],
        "rho": report.rho,
        "layers": [_layer(layer) for layer in report.layers],
        "ablation": _ablation(report),
        "texts": {"source": report.texts_source, "count": report.n_texts},
    }


def _self_check(report: Report) -> dict[str, Any]:
    check = report.check
    return {
        "tolerance": check.tolerance,
        "forward_errors": list(check.forward_errors),
        "weight_errors": list(check.weight_errors),
        "degree_errors": list(check.degree_errors),
    }


def _components(report: Report) -> dict[str, Any]:
    parts = report.components
    return {
        "sites": dict(zip(parts.sites, parts.target[0].tolist(), strict=True)),
        "embedding": float(parts.embedding[0].sum()),
        "heads": parts.heads[:, 0].sum(1).tolist(),
        "attention_bias": parts.attention_bias[:, 0].sum(1).tolist(),
        "mlps": parts.mlps[:, 0].sum(1).tolist(),
        "bias": float(parts.bias.sum()),
        "total": float(parts.total[0].sum()),
        "target": float(parts.target[0].sum()),
        "discrepancy": float(parts.discrepancy[0].sum()),
    }


def _layer(layer: LayerReport) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "gauge": layer.eigen.gauge,
        "eigenvalues": layer.eigen.eigenvalues.tolist(),
        "share": layer.share,
        "modes": [_mode(mode) for mode in layer.modes],
        "other_modes": layer.other_modes,
        "trace": layer.trace,
        "linear": layer.linear,
        "constant": layer.constant,
        "total": layer.total,
    }


def _mode(mode: ModeReport) -> dict[str, Any]:
    return {
        "name": mode.name,
        "index": mode.index,
        "eigenvalue": mode.mode.eigenvalue,
        "activation": mode.activation,
        "contribution": mode.contribution,
        "tokens_positive": [list(pair) for pair in mode.reading.positive],
        "tokens_negative": [list(pair) for pair in mode.reading.negative],
        "prompt_activations": list(mode.prompt_activations),
        "examples": [
            {
                "text": example.text,
                "peak": example.peak,
                "tokens": list(example.tokens),
                "activations": list(example.activations),
            }
            for example in mode.examples
        ],
    }


def _ablation(report: Report) -> dict[str, Any]:
    effect = report.ablation
    return {
        "mode": report.top_mode.name,
        "before": effect.before,
        "after": effect.after,
        "direct": effect.direct,
        "controls": list(effect.controls),
        "controls_as_large": effect.controls_as_large,
        "rms": effect.rms,
        "tokens": effect.tokens,
        "seed": effect.seed,
        "probabilities": [list(row) for row in effect.probabilities],
    }
