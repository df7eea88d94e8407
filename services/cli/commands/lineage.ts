import { ReplayOutcome, RoundLineage, type LineageCheck } from "#proto/shoal/v1/aggregator_service.js";
import { wholeNumber } from "../arguments.js";
import { streamed } from "../calls.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson } from "../io.js";
import { formatBytes, formatDuration } from "../output/format.js";
import { formatFields, formatTable, printable } from "../output/table.js";
import { workDisplay } from "../output/work-display.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

interface VerifyOptions extends RemoteOptions {
  readonly first?: number;
  readonly last?: number;
  readonly replay?: boolean;
}

/** Bytes of updates from which logs are told of progress. */
const LONG_BYTES = 16 * 1024 * 1024;
const LONG_ROUNDS = 20;

/** What a replay came to, for people; the digest that it is all about first. */
export function formatReplay(outcome: ReplayOutcome): string {
  const { equal, damage } = outcome;
  const verdict = damage === "" ? (equal ? "equal to what was published" : "DIFFERS from what was published") : damage;
  const outer = outcome.outerDigest === "" ? [] : [["outer state", outcome.outerDigest] as const];
  const published: [string, string][] = equal
    ? []
    : [
        ["published", outcome.publishedWeightsDigest],
        ["published state", outcome.publishedOuterDigest === "" ? "none" : outcome.publishedOuterDigest],
      ];
  return formatFields([
    ["weights", outcome.weightsDigest === "" ? "not computed" : outcome.weightsDigest],
    ...outer,
    ...published,
    ["verdict", verdict],
    ["updates", `${outcome.updates}, ${formatBytes(outcome.readBytes)} read in ${formatDuration(outcome.elapsedMs)}`],
  ]);
}

async function replay(shell: Shell, job: string, number: number, options: RemoteOptions): Promise<void> {
  const { io, signal } = shell;
  const display = workDisplay(io, LONG_BYTES);
  const outcome = await withClients(shell, options, async (clients) => {
    const client = clients.aggregator();
    for await (const { part } of streamed(client.replayRound({ job, number }), signal)) {
      if (part?.$case === "outcome") return part.value;
      if (part === undefined) continue;
      const { readBytes, updateBytes } = part.value;
      const detail = `${formatBytes(readBytes)} read, the updates are ${formatBytes(updateBytes)}`;
      display.show({ what: `${job}-${number}`, done: readBytes, total: updateBytes, detail });
    }
    throw new CliError("the aggregator ended without an answer", EXIT.temporary);
  });
  display.clear();
  if (options.json === true) writeJson(io, ReplayOutcome.toJSON(outcome));
  else io.out(formatReplay(outcome));
  if (outcome.equal) return;
  const why = outcome.damage === "" ? "it does not come to what was published" : outcome.damage;
  throw new CliError(`round ${outcome.round} cannot be confirmed: ${why}`, EXIT.failed);
}

const of = (checks: readonly LineageCheck[], outcome: string): LineageCheck[] =>
  checks.filter((check) => check.outcome === outcome);

/** A round's findings as one line, then a line for everything that is not verified. */
export function formatLineage({ number, round, checks, weightsDigest }: RoundLineage): string {
  const broken = of(checks, "Broken");
  const missing = of(checks, "Unverifiable");
  const state = broken.length > 0 ? "BROKEN" : missing.length > 0 ? "partly" : "ok";
  const held = of(checks, "Verified").map(({ name }) => name);
  const title = number === 0 ? `job ${round}` : `round ${number}`;
  const weights = weightsDigest.replace(/^(sha256:.{12}).*/, "$1");
  const line = `${title.padEnd(12)} ${state.padEnd(6)} ${weights.padEnd(19)} ${held.join(" ")}`.trimEnd();
  const rest = [...broken, ...missing].map(({ name, outcome, message }) =>
    printable(`  ${outcome === "Broken" ? "!" : "?"} ${name}: ${message}`),
  );
  return [line, ...rest].map((each) => `${each}\n`).join("");
}

/** How many checks of all rounds came to what. */
function formatSummary(rounds: readonly RoundLineage[]): string {
  const checks = rounds.flatMap((round) => round.checks);
  const outcomes = ["Verified", "Unverifiable", "Broken"];
  return formatTable(
    [
      { title: "CHECKS", cell: (outcome: string) => outcome },
      { title: "COUNT", right: true, cell: (outcome) => String(of(checks, outcome).length) },
    ],
    outcomes,
  );
}

async function verify(shell: Shell, job: string, options: VerifyOptions): Promise<void> {
  const { io, signal } = shell;
  const display = workDisplay(io, LONG_ROUNDS);
  const rounds: RoundLineage[] = [];
  await withClients(shell, options, async (clients) => {
    const request = {
      job,
      firstRound: options.first ?? 0,
      lastRound: options.last ?? 0,
      replay: options.replay ?? false,
    };
    for await (const { part } of streamed(clients.aggregator().verifyJob(request), signal)) {
      if (part?.$case === "round") {
        rounds.push(part.value);
        display.clear();
        if (options.json !== true) io.out(formatLineage(part.value));
      } else if (part !== undefined) {
        const { number, lastRound, readBytes } = part.value;
        const done = number === 0 ? lastRound : number - 1;
        const where = number === 0 ? "origin and model" : `round ${number} of ${lastRound}`;
        display.show({ what: job, done, total: lastRound, detail: `${where}, ${formatBytes(readBytes)} read` });
      }
    }
  });
  display.clear();
  if (signal.aborted) throw new CliError("interrupted before the walk was done", EXIT.failed);
  if (options.json === true) writeJson(io, { job, rounds: rounds.map((round) => RoundLineage.toJSON(round)) });
  else io.out(`\n${formatSummary(rounds)}`);
  const faults = rounds.flatMap(({ round, checks }) => of(checks, "Broken").map(({ name }) => `${round} (${name})`));
  if (faults.length > 0) throw new CliError(`the lineage of job ${job} is broken at ${faults.join(", ")}`, EXIT.failed);
}

const roundNumber = wholeNumber(1, 1_000_000);

export const lineageCommands: CommandGroup = (program, shell) => {
  takesRemote(
    program
      .command("replay <job>")
      .description("fold a round again from the update log; exit code 1 unless it comes to what was published"),
  )
    .argument("<round>", "number of the round", roundNumber)
    .action((job: string, number: number, options: RemoteOptions) => replay(shell, job, number, options));
  takesRemote(
    program
      .command("verify <job>")
      .description("walk the lineage of a job's weights round by round; exit code 1 if it is broken"),
  )
    .option("--first <round>", "first round to check", roundNumber)
    .option("--last <round>", "last round to check", roundNumber)
    .option("--replay", "also fold the rounds again that are still in the log")
    .action((job: string, options: VerifyOptions) => verify(shell, job, options));
};
