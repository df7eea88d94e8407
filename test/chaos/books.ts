import { FAULT_KINDS, type KindName } from "./faults.js";

/** What became of one fault. */
export interface Entry {
  readonly kind: KindName;
  /** Rounds that were under way when it struck and when it healed. */
  readonly rounds: readonly string[];
  readonly healed: boolean;
}

/** Rounds with something wrong, once for each thing. */
export interface Problems {
  readonly lost: readonly string[];
  readonly doubled: readonly string[];
  readonly mismatched: readonly string[];
}

/** One line of the report. */
export interface Row {
  readonly title: string;
  readonly struck: number;
  readonly healed: number;
  /** Different rounds that were under way. */
  readonly rounds: number;
  readonly lost: number;
  readonly doubled: number;
  readonly mismatched: number;
  /** Why the kind was left out. */
  readonly left?: string;
}

/** The round a problem is of: problems begin with a round's name, or with a word and a round's name. */
const isOf = (problem: string, round: string): boolean => problem.split(/[\s/@]/).includes(round);

/**
 * The table of a run by kind of fault, with a total. A problem is counted with every kind that struck in its round, and
 * once in the total, in which it counts also if no fault struck then.
 */
export function tabulate(entries: readonly Entry[], problems: Problems, left: ReadonlyMap<KindName, string>): Row[] {
  const count = (found: readonly string[], rounds: readonly string[]): number =>
    found.filter((problem) => rounds.some((round) => isOf(problem, round))).length;
  const rowOf = (title: string, of: readonly Entry[]): Row => {
    const rounds = [...new Set(of.flatMap((entry) => entry.rounds))];
    return {
      title,
      struck: of.length,
      healed: of.filter((entry) => entry.healed).length,
      rounds: rounds.length,
      lost: count(problems.lost, rounds),
      doubled: count(problems.doubled, rounds),
      mismatched: count(problems.mismatched, rounds),
    };
  };
  const rows = (Object.keys(FAULT_KINDS) as KindName[]).flatMap((kind): Row[] => {
    const of = entries.filter((entry) => entry.kind === kind);
    const why = left.get(kind);
    if (why !== undefined) return [{ ...rowOf(FAULT_KINDS[kind].title, of), left: why }];
    return of.length === 0 ? [] : [rowOf(FAULT_KINDS[kind].title, of)];
  });
  const { lost, doubled, mismatched } = problems;
  const total = { lost: lost.length, doubled: doubled.length, mismatched: mismatched.length };
  return [...rows, { ...rowOf("all", entries), ...total }];
}

/** The table in Markdown. */
export function markdown(rows: readonly Row[]): string {
  const cells = rows.map((row) =>
    row.left === undefined
      ? [row.title, row.struck, row.healed, row.rounds, row.lost, row.doubled, row.mismatched].map(String)
      : [row.title, `left out: ${row.left}`, "", "", "", "", ""],
  );
  const head = ["fault", "struck", "healed", "rounds under way", "lost", "counted twice", "digest mismatches"];
  const widths = head.map((title, i) => Math.max(title.length, ...cells.map((line) => (line[i] ?? "").length)));
  const show = (line: readonly string[]): string =>
    `| ${line.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join(" | ")} |`;
  return [show(head), show(widths.map((width) => "-".repeat(width))), ...cells.map(show)].join("\n") + "\n";
}
