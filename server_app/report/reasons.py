"""Why a hospital left a round: code → (in two or three words, in a sentence)."""

REASONS = {
    "absent": (
        "not present",
        "The hospital was not connected to the federation when the round began.",
    ),
    "suspended": (
        "suspended by the coordinator",
        "The coordinator had suspended the hospital when the round began; it was not asked.",
    ),
    "unavailable": (
        "not reachable",
        "The hospital's node could not be reached when it was asked.",
    ),
    "crashed": (
        "stopped by an error",
        "The program at the hospital stopped with an error before it could answer.",
    ),
    "late": (
        "too late",
        "No answer came before the round's deadline.",
    ),
    "not_finite": (
        "numbers not finite",
        "The answer held NaN or infinite numbers, as after training that diverged; "
        "it was not used.",
    ),
    "diverged": (
        "training diverged",
        "Training at the hospital ran into NaN or infinite numbers; it sent no update. "
        "A smaller learning rate would help.",
    ),
    "malformed": (
        "unreadable answer",
        "The answer was not of the form that the two sides agreed on; perhaps its version differs.",
    ),
    "wrong_names": (
        "wrong parameter names",
        "The answer held other parameters than the model has; perhaps its version differs.",
    ),
    "wrong_shape": (
        "wrong shapes",
        "A parameter in the answer had another shape than in the model.",
    ),
    "wrong_dtype": (
        "wrong number type",
        "A parameter in the answer had another number type than in the model.",
    ),
    "too_large": (
        "too large",
        "The answer was larger than the experiment allows; it was not used.",
    ),
    "norm_too_large": (
        "update too strong",
        "The norm of the update was above the experiment's largest_update_norm; it was not used.",
    ),
    "wrong_round": (
        "of another round",
        "The answer belonged to another round: repeated, or left over from before.",
    ),
    "refused_task": (
        "task not allowed",
        "The hospital's policy does not allow this task.",
    ),
    "refused_model": (
        "model not allowed",
        "The hospital's policy does not allow this model.",
    ),
    "refused_rounds": (
        "too many rounds",
        "The experiment has more rounds than the hospital's policy allows.",
    ),
    "refused_experiment": (
        "experiment not approved",
        "The hospital's policy names the experiments that it approves; this is none of them.",
    ),
    "refused_code": (
        "code not approved",
        "The code that came with the run is not what the hospital has installed or approved.",
    ),
    "refused_privacy": (
        "privacy too weak",
        "The experiment asks for less noise, a higher sampling rate, a larger clipping norm, or more "
        "images or steps than the hospital's policy allows.",
    ),
    "privacy_required": (
        "only private runs",
        "The hospital keeps a privacy budget for its patients and takes part in private runs alone; "
        "the experiment has no privacy.",
    ),
    "secure_aggregation_required": (
        "asks for secure aggregation",
        "The hospital's policy allows no run whose coordinator can read a single update.",
    ),
    "outside_hours": (
        "outside its hours",
        "The hospital serves requests at certain hours of the day alone.",
    ),
    "no_ledger": (
        "no ledger",
        "The run is private, but the hospital keeps no privacy budget for its patients, or its ledger "
        "is missing; `hospital check` there tells which.",
    ),
    "ledger_unusable": (
        "ledger unusable",
        "The hospital's ledger is damaged, was changed, is an older copy, or is of other patients; "
        "nothing was computed. `hospital ledger verify` there tells what to do.",
    ),
    "budget_spent": (
        "privacy budget spent",
        "What was asked would have passed the ε that the hospital allows, for its patients over all "
        "runs or for one run; it computed nothing.",
    ),
    "replayed": (
        "asked again",
        "The hospital had already paid for this round or a later one; it repeats a round only as it "
        "was, and only as often as its policy allows.",
    ),
    "bad_experiment": (
        "experiment not understood",
        "The hospital could not use the experiment it was sent; perhaps its version differs.",
    ),
    "bad_site": (
        "site set up wrongly",
        "The hospital's own configuration cannot be used; `hospital check` there tells why.",
    ),
    "too_few_patients": (
        "too few patients",
        "The hospital has fewer patients for this task than its policy requires.",
    ),
    "no_data": (
        "no usable data",
        "The hospital found no images with labels that serve this task.",
    ),
    "out_of_memory": (
        "out of memory",
        "The hospital's machine ran out of memory; a smaller batch or patch would help.",
    ),
    "disk_full": (
        "disk full",
        "The hospital's disk has no room left; it can take no part until there is.",
    ),
    "internal_error": (
        "internal error",
        "Something unexpected went wrong at the hospital; its own log tells what.",
    ),
    "refused_release": (
        "keeps the model",
        "The hospital's policy does not let the coordinator have the final model.",
    ),
    "too_few_hospitals": (
        "too few hospitals",
        "A sum of so few hospitals' updates would say too much of each; the hospital did not take part.",
    ),
    "roster_differs": (
        "another roster",
        "The hospital holds another list of the federation's hospitals than the coordinator; it accepts "
        "a new one with `hospital roster accept`.",
    ),
    "bad_signature": (
        "signature wrong",
        "A key or a list did not carry the signature of the hospital that it was said to come from.",
    ),
    "bad_key": (
        "key refused",
        "A key that came for the masks is one that would protect nothing.",
    ),
    "bad_share": (
        "share damaged",
        "A secret share could not be opened, or was not of this sum.",
    ),
    "survivors_differ": (
        "lists differ",
        "The hospitals were told different lists of who is in the sum; nothing was opened.",
    ),
    "both_shares": (
        "asked for both secrets",
        "What was asked for would have taken the masks off one hospital's update; nothing was opened.",
    ),
    "no_keys": (
        "keys gone",
        "The hospital no longer has the keys of this sum; it takes part again with fresh ones.",
    ),
    "no_model": (
        "model not held",
        "The hospital no longer had the model that the difference was to, and got the whole one.",
    ),
    "no_state": (
        "memory lost",
        "The hospital lost what the strategy had it keep of its earlier updates, which are in the "
        "model; it can take no further part in this run.",
    ),
}
