"""Ratios, verdicts and the table."""

import statistics


def summary(samples):
    if not samples:
        return None
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}


def ratios(values, over, under):
    """Round by round; None where one of the two was not measured."""
    if over not in values or under not in values:
        return None
    return summary([a / b for a, b in zip(values[over], values[under])])


def analyse(row, store, values, transport):
    cfs, null = f"cfs-{transport}", f"null-{transport}"
    result = {
        "cfs/null": ratios(values, cfs, null),
        "cfs/native": ratios(values, cfs, "native"),
        "null/native": ratios(values, null, "native"),
        "verdicts": [],
    }
    if store not in row.stores:
        return result
    if row.of_null is not None and result["cfs/null"]:
        result["verdicts"].append(verdict(result["cfs/null"], row.of_null, "null"))
    if row.of_native is not None and result["cfs/native"]:
        ceiling = result["null/native"]
        # Data rows ask of cfs only what FUSE can give; stat_warm never reaches a daemon.
        if not row.fio or (ceiling and ceiling["median"] >= row.of_native):
            result["verdicts"].append(verdict(result["cfs/native"], row.of_native, "native"))
    return result


def verdict(ratio, target, of):
    return {"of": of, "target": target, "pass": ratio["median"] >= target}


def number(value):
    if value >= 99_950:
        return f"{value / 1000:.0f}k"
    if value >= 9_995:
        return f"{value / 1000:.1f}k"
    if value < 99.5:
        return f"{value:.2f}"
    return f"{value:.0f}"


def cell(samples):
    s = summary(samples) if samples else None
    return f"{number(s['median'])} ({number(s['min'])}..{number(s['max'])})" if s else "-"


def ratio_cell(ratio):
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f})" if ratio else "-"


def verdict_cell(verdicts):
    return ", ".join(
        f">= {v['target']:.2f} of {v['of']} {'PASS' if v['pass'] else 'MISS'}" for v in verdicts
    )


def print_table(header, lines):
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    for line in [header, *lines]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def in_turn(*rates):
    """What is left when each has its share of the work, one after the other."""
    return 1 / sum(1 / rate for rate in rates)


def analyse_cluster(row, values):
    """None where a contender was not measured as often as the others."""
    if not values or any(len(values.get(name, ())) != len(values["cfs"]) for name in row.bounds):
        return None
    bounds = list(zip(*(values[name] for name in row.bounds)))
    of_ceiling = summary([cfs / min(bound) for cfs, bound in zip(values["cfs"], bounds)])
    return {
        "of_ceiling": of_ceiling,
        "of_bounds_in_turn": len(row.bounds) > 1 and summary(
            [cfs / in_turn(*bound) for cfs, bound in zip(values["cfs"], bounds)]) or None,
        "verdicts": [verdict(of_ceiling, row.target, "ceiling")] if row.target else [],
    }


def report_cluster(cluster, rows):
    print("\nclusters (stores on tmpfs, requests over /dev/fuse): median (min..max)")
    header = ["row", "unit", "cfs", "raw tcp", "null", "alone", "of the least", "of raw + null",
              "target"]
    lines = []
    for row in rows:
        if row.name in cluster["absent"]:
            lines.append([row.name, row.unit, f"- {cluster['absent'][row.name]}",
                          *[""] * (len(header) - 3)])
            continue
        values, found = cluster["rows"][row.name], cluster["ratios"][row.name]
        lines.append([row.name, row.unit,
                      *(cell(values.get(name)) for name in ("cfs", "raw", "null", "alone")),
                      ratio_cell(found["of_ceiling"]), ratio_cell(found["of_bounds_in_turn"]),
                      verdict_cell(found["verdicts"])])
    print_table(header, lines)
    return [v for found in cluster["ratios"].values() for v in found["verdicts"]]


def analyse_backend(row, values):
    """None where something was not measured."""
    if not values["cfs"] or len(values["cfs"]) != len(values["native"]):
        return None
    ratio = ratios(values, "cfs", "native")
    return {"ratio": ratio, "verdicts": [verdict(ratio, row.target, "native")] if row.target else []}


def report_backend(backend, rows):
    print("\nbackend (store and backend on ext4 images, requests over /dev/fuse): median (min..max)")
    print_table(["row", "unit", "cfs", "native", "cfs/native", "target"], [
        [row.name, row.unit, cell(backend["rows"][row.name]["cfs"]),
         cell(backend["rows"][row.name]["native"]), ratio_cell(backend["ratios"][row.name]["ratio"]),
         verdict_cell(backend["ratios"][row.name]["verdicts"])] for row in rows])
    return [v for found in backend["ratios"].values() for v in found["verdicts"]]


def report(results, rows):
    """Prints the tables of one node and returns their verdicts."""
    for store, result in results["stores"].items():
        for transport in results["transports"]:
            print(f"\n{store} store ({result['file_system']}), transport {transport}: "
                  "median (min..max)")
            header = ["row", "unit", "cfs", "null", "native", "cfs/null", "cfs/native",
                      "null/native", "target"]
            lines = []
            for row in rows:
                values = result["rows"][row.name]
                found = result["ratios"][transport][row.name]
                lines.append([
                    row.name, row.unit,
                    *(cell(values.get(name))
                      for name in (f"cfs-{transport}", f"null-{transport}", "native")),
                    *(ratio_cell(found[key]) for key in ("cfs/null", "cfs/native", "null/native")),
                    verdict_cell(found["verdicts"]),
                ])
            print_table(header, lines)
        for name, count in result["bytes_through_daemon"].items():
            print(f"data bytes through the daemon of {name}: "
                  f"{count['read']} read, {count['written']} written")
    return [
        v
        for result in results["stores"].values()
        for by_row in result["ratios"].values()
        for found in by_row.values()
        for v in found["verdicts"]
    ]


def print_verdicts(verdicts):
    if verdicts:
        missed = sum(not v["pass"] for v in verdicts)
        print(f"\ntargets: {len(verdicts) - missed} PASS, {missed} MISS")
