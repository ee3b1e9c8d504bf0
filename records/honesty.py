"""Further findings of the checks of verify.py: what a careless or dishonest folder would show. By row of the table."""
from records import copies, payloads, plausible, statements, trainer_log
from records.rules import FAIL, WARN

MEANINGS = {  # what a finding means, by status and check; the others are those of the check itself
    (FAIL, "schema"): "A record is dated on the day that it was made.",
    (FAIL, "artifact"): "The model file is the one that the claimed run wrote, and nobody else's.",
    (FAIL, "code bytes"): "Weights and code count wherever they lie: take them out of texts and pictures.",
    (FAIL, "clock"): "Hardware that is claimed is that of the logs.",
}
LOOK = "An honest record may look so for a reason, which the README should give."


def further(name, folder, rules, tree):
    """list of Findings for one check of a Folder. rules: Rules; tree: the Tree of the folder."""
    found = list(_of_check(name, folder, rules, tree))
    for finding in found:
        usual = LOOK if finding.status == WARN else MEANINGS.get((finding.status, name), "")
        finding.meaning = finding.meaning or usual
    return found


def _of_check(name, folder, rules, tree):
    by_name = {
        "schema": lambda: statements.check_dates(folder),
        "code bytes": lambda: [
            *payloads.check_payloads(folder),
            *copies.check_code_of_others(folder, tree.others(folder)),
        ],
        "artifact": lambda: [
            *statements.check_model_digests(folder),
            *statements.check_model_is_claimed(folder),
            *copies.check_models_of_others(folder, tree.others(folder)),
        ],
        "logs": lambda: [
            *plausible.check_plausible(folder),
            *trainer_log.check_trainer_logs(folder),
            *statements.check_same_configuration(folder, rules),
            *copies.check_copied_runs(folder),
            *copies.check_runs_of_others(folder, tree.others(folder)),
        ],
        "score": lambda: [
            *statements.check_data_set(folder),
            *statements.check_seed_figures(folder, rules),
            *statements.check_readme_score(folder),
        ],
        "clock": lambda: [*plausible.check_after_the_clock(folder), *statements.check_hardware(folder, rules)],
    }
    return by_name[name]() if name in by_name else []
