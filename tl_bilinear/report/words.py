"""What the words on the page mean."""

WORDS = (
    (
        "Token",
        "The unit that the model reads and predicts, often a piece of a word. ␣ marks a space "
        "and ↵ a new line. Many models put a mark such as <s> before every text.",
    ),
    (
        "Logit, target",
        "A logit is the model's score for a next token; a softmax turns all of them into "
        "probabilities. The target is the number that this page explains: one logit, or one "
        "minus another. Everything below is in logits unless it says otherwise.",
    ),
    (
        "Stream",
        "The vector that runs through the model at each token (also: residual stream). The "
        "embedding starts it; every attention head and every MLP adds to it. At the end a norm "
        "divides it by a number ρ and the unembedding turns it into logits.",
    ),
    (
        "Direct effect",
        "What a component's own addition to the stream gives to the target when the final "
        "norm's ρ is frozen, that is, taken from the model's run as a constant. Direct effects "
        "add up to the target. What a component does by way of later components is not in its "
        "own direct effect but in theirs.",
    ),
    (
        "Bilinear MLP",
        "mlp(x) = W_out ((W_gate x) * (W_in x)), with no activation function, * being the product "
        "entry by entry. x is the stream after the MLP's norm and before the norm's gain, which is "
        "folded into the weights here.",
    ),
    (
        "Interaction matrix Q(u)",
        "u is the direction in the stream that the target reads. A bilinear MLP's output "
        "along u is xᵀ Q(u) x (plus a linear and a constant part if it has biases), where Q(u) is "
        "a symmetric d_model × d_model matrix made from the MLP's weights and u alone.",
    ),
    (
        "Eigenvalue λ, eigenvector v, mode",
        "Q(u) is the sum of λ v vᵀ over its eigenpairs, so the MLP's output along u is the sum of "
        "λ (v·x)². One pair is a mode. L3.0 is the mode of largest |λ| in layer 3, L3.1 the "
        "next. Layers and modes count from 0. A mode with λ > 0 can only push the target up, one "
        "with λ < 0 only down.",
    ),
    (
        "Activation",
        "v·x at a token: how strongly the mode reads what stands there. Its sign is a "
        "convention (v and −v are the same mode) but two tokens with different signs are read as "
        "opposites. The contribution depends on the square.",
    ),
    (
        "Contribution",
        "λ (v·x)² / ρ at the place where the target is read: the mode's direct effect in logits.",
    ),
    (
        "Gauge",
        "After RMSNorm or LayerNorm |x|² is constant, so adding a multiple of the identity to Q(u) "
        "only moves a constant. A spectrum has to say which multiple it shows: “none” is Q(u) as "
        "the weights give it, “traceless” has its mean eigenvalue taken out.",
    ),
    (
        "Ablation, matched random mode",
        "To ablate a mode is to subtract λ (v·x)² along u from its MLP's output at every token and "
        "to run the rest of the model again, nothing frozen. A matched random mode has the same "
        "layer, the same u and the same sign, a random v, and a λ scaled so that the root mean "
        "square of λ (v·x)² over the stories is the same.",
    ),
)
