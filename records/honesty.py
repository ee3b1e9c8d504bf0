"""Further findings of the checks of verify.py: what a careless or dishonest folder would show. By row of the table."""
from records import copies, payloads, plausible, statements, trainer_log


def further(name, folder, rules, tree):
    """list of Findings for one check. tree: the Tree of the folder."""
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
        "score": lambda: [*statements.check_seed_figures(folder, rules), *statements.check_readme_score(folder)],
        "clock": lambda: [*plausible.check_after_the_clock(folder), *statements.check_hardware(folder, rules)],
    }
    return by_name[name]() if name in by_name else []
