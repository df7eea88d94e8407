import { countUnnamed } from "#common/domain/left-out.js";
import { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import { JobServiceExplainResponse, RoundWithResult } from "#proto/shoal/v1/job_service.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Condition } from "#proto/shoal/v1/meta.js";
import { Model } from "#proto/shoal/v1/model.js";
import type { Assignment, Exclusion, RoundStatus, MemberUpdate, Verdict } from "#proto/shoal/v1/round.js";
import { call } from "../calls.js";
import { CliError, EXIT } from "../exit.js";
import { writeJson } from "../io.js";
import { listRounds } from "../lists.js";
import { formatAge, formatBytes, formatCount, formatDuration, formatLabels, formatLoss } from "../output/format.js";
import { formatFields, formatTable, printable, type Column } from "../output/table.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions } from "../shell.js";
import { deviceActivity, deviceState } from "./tables.js";

const section = (title: string, body: string): string => (body === "" ? "" : `\n${title}\n${body}`);

function conditionTable(conditions: readonly Condition[], nowMs: number): string {
  if (conditions.length === 0) return "";
  return formatTable(
    [
      { title: "  TYPE", cell: (c: Condition) => `  ${c.type}` },
      { title: "STATUS", cell: (c) => c.status },
      { title: "SINCE", right: true, cell: (c) => formatAge(c.lastTransitionAtMs, nowMs) },
      { title: "REASON", cell: (c) => c.reason },
      { title: "MESSAGE", cell: (c) => c.message },
    ],
    conditions,
  );
}

function assignmentTable(assignments: readonly Assignment[]): string {
  if (assignments.length === 0) return "";
  return formatTable(
    [
      { title: "  DEVICE", cell: (a: Assignment) => `  ${a.device}` },
      { title: "STEPS", right: true, cell: (a) => String(a.localSteps) },
      { title: "BATCH", right: true, cell: (a) => String(a.batchSize) },
      { title: "PREDICTED", right: true, cell: (a) => formatDuration(a.predictedMs) },
    ],
    assignments,
  );
}

/** One line of the table of updates: a device's own, a gateway's, or of a device whose gateway folded it. */
interface UpdateLine {
  readonly device: string;
  readonly verdict: string;
  readonly message: string;
  readonly norm: number;
  /** Rounds since the one whose weights it started from. */
  readonly staleness: number;
  readonly update: Partial<Pick<MemberUpdate, "localSteps" | "trainLoss" | "sizeBytes" | "trainMs">>;
}

function updateLines({ accepted, reason, message, norm, staleness, manifest }: Verdict): UpdateLine[] {
  const verdict = accepted ? "accepted" : reason;
  const site = manifest?.site === undefined || manifest.site === "" ? "" : ` (site ${manifest.site})`;
  const own = {
    device: `  ${manifest?.device ?? "?"}${site}`,
    verdict,
    message,
    norm,
    staleness,
    update: manifest ?? {},
  };
  const members = (manifest?.members ?? []).map((update): UpdateLine => {
    const folded = update.refusal === "" ? "folded" : update.refusal;
    const { device, norm } = update;
    return { device: `    ${device}`, verdict: folded, message: update.message, norm, staleness, update };
  });
  return [own, ...members];
}

function verdictTable(verdicts: readonly Verdict[]): string {
  if (verdicts.length === 0) return "";
  const isAnyStale = verdicts.some(({ staleness }) => staleness > 0);
  const stale: Column<UpdateLine> = { title: "STALE", right: true, cell: (line) => String(line.staleness) };
  return formatTable<UpdateLine>(
    [
      { title: "  DEVICE", cell: (line) => line.device },
      { title: "VERDICT", cell: (line) => line.verdict },
      ...(isAnyStale ? [stale] : []),
      { title: "STEPS", right: true, cell: ({ update }) => String(update.localSteps ?? 0) },
      { title: "LOSS", right: true, cell: ({ update }) => formatLoss(update.trainLoss) },
      { title: "NORM", right: true, cell: (line) => line.norm.toPrecision(4) },
      { title: "UP", right: true, cell: ({ update }) => formatBytes(update.sizeBytes ?? 0) },
      { title: "TRAINED", right: true, cell: ({ update }) => formatDuration(update.trainMs ?? 0) },
      { title: "MESSAGE", cell: (line) => line.message },
    ],
    verdicts.flatMap(updateLines),
  );
}

const exclusionLines = (exclusions: readonly Exclusion[]): string =>
  exclusions.map(({ device, reasons }) => `  ${device}: ${printable(reasons.join("; "))}\n`).join("");

/** Those left out, as far as they are named, and how many more there are. */
function leftOutLines(status: RoundStatus): string {
  const unnamed = countUnnamed(status);
  return exclusionLines(status.exclusions) + (unnamed > 0 ? `  and ${unnamed} more\n` : "");
}

/** How a round's change of the weights comes down to devices, if it is encoded. */
function downText(job: TrainingJob | undefined): string {
  const down = job?.spec?.codec?.down ?? "";
  return down === "" || down === "none" ? "" : `, ${down} down`;
}

/** A job with the explanation of where it is. */
export function describeJob({ job, round, tally, explanation }: JobServiceExplainResponse, nowMs: number): string {
  const status = job?.status;
  const fields = formatFields([
    ["Name", job?.metadata?.name ?? ""],
    ["Phase", status?.phase ?? "Pending"],
    ["Labels", formatLabels(job?.metadata?.labels ?? {})],
    ["Rounds", `${status?.completedRounds ?? 0} of ${job?.spec?.rounds ?? 0}`],
    ["Parameters", formatCount(status?.parameters ?? 0)],
    ["Strategy", `${job?.spec?.strategy?.name ?? ""}, ${job?.spec?.codec?.name ?? ""} updates${downText(job)}`],
    ["Train loss", formatLoss(status?.trainLoss)],
    ["Held-out loss", formatLoss(status?.evalLoss)],
    ["Bytes", `${formatBytes(status?.bytesUp ?? 0)} up, ${formatBytes(status?.bytesDown ?? 0)} down`],
    ["Model", status?.model === undefined || status.model === "" ? "-" : status.model],
    ["Age", formatAge(job?.metadata?.createdAtMs ?? 0, nowMs)],
  ]);
  return (
    fields +
    section("Why", explanation.map((line) => `  ${printable(line)}\n`).join("")) +
    section("Conditions", conditionTable(status?.conditions ?? [], nowMs)) +
    section(
      `Round ${round?.spec?.number ?? 0} (${round?.status?.phase ?? ""})`,
      assignmentTable(round?.status?.assignments ?? []),
    ) +
    section("Left out", round?.status === undefined ? "" : leftOutLines(round.status)) +
    section("Updates", verdictTable(tally?.verdicts ?? []))
  );
}

/** A device with its facts, data and policy. */
export function describeDevice(found: DeviceWithLease, nowMs: number): string {
  const { device, lease } = found;
  const status = device?.status;
  const facts = status?.facts;
  const list = (items: readonly string[] | undefined): string =>
    items === undefined || items.length === 0 ? "any" : items.join(", ");
  const fields = formatFields([
    ["Name", device?.metadata?.name ?? ""],
    ["State", deviceState(found)],
    ["Does", deviceActivity(found)],
    ["Labels", formatLabels(device?.metadata?.labels ?? {})],
    [
      "System",
      `${facts?.os ?? "?"}/${facts?.arch ?? "?"}, agent ${facts?.agentVersion ?? "?"}, ${facts?.backend ?? "?"}`,
    ],
    [
      "Capacity",
      `${facts?.cores ?? 0} cores, ${formatBytes(facts?.memoryBytes ?? 0)}, ${(facts?.gflops ?? 0).toFixed(1)} GFLOP/s`,
    ],
    ["Last beat", formatAge(lease?.renewedAtMs ?? 0, nowMs)],
    ["Clock skew", `${status?.clockSkewMs ?? 0} ms`],
    ["Rounds today", String(status?.roundsToday ?? 0)],
    ["Purposes", list(status?.policy?.purposes)],
    ["Families", list(status?.policy?.modelFamilies)],
    ["Smallest cohort", String(status?.policy?.minCohort ?? 0)],
  ]);
  const datasets = (status?.datasets ?? [])
    .map((d) => `  ${d.name}: ${formatCount(d.tokens)} tokens${d.problem === "" ? "" : `, ${printable(d.problem)}`}\n`)
    .join("");
  return (
    fields + section("Datasets", datasets) + section("Conditions", conditionTable(status?.conditions ?? [], nowMs))
  );
}

/** A round with its plan and its result. */
export function describeRound({ round, result }: RoundWithResult, nowMs: number): string {
  const status = round?.status;
  const fields = formatFields([
    ["Name", round?.metadata?.name ?? ""],
    ["Phase", status?.phase ?? "Planning"],
    ["Attempt", String(status?.attempt ?? 0)],
    ["Quorum", `${status?.quorum ?? 0} of ${status?.target ?? 0} wanted, ${status?.assignments.length ?? 0} invited`],
    ["Train loss", formatLoss(result?.trainLoss)],
    ["Held-out loss", formatLoss(result?.evalLoss)],
    ["Weights", result?.weights?.digest ?? "-"],
    ["Fold", result === undefined ? "-" : formatDuration(result.foldMs)],
  ]);
  return (
    fields +
    section("Conditions", conditionTable(status?.conditions ?? [], nowMs)) +
    section("Assignments", assignmentTable(status?.assignments ?? [])) +
    section("Left out", status === undefined ? "" : leftOutLines(status) + exclusionLines(status.withdrawn)) +
    section("Updates", verdictTable([...(result?.folded ?? []), ...(result?.refused ?? [])]))
  );
}

/** A model and where it came from. */
export function describeModel(model: Model, nowMs: number): string {
  const origin = model.origin;
  return formatFields([
    ["Name", model.metadata?.name ?? ""],
    ["Family", model.family],
    ["Parameters", formatCount(model.parameters)],
    ["Tokenizer", model.tokenizer?.kind ?? "-"],
    ["Config", JSON.stringify(model.config ?? {})],
    ["Weights", model.weights?.digest ?? "-"],
    ["Origin", origin === undefined || origin.job === "" ? "imported" : `job ${origin.job}, round ${origin.round}`],
    ["Age", formatAge(model.metadata?.createdAtMs ?? 0, nowMs)],
  ]);
}

export const describeCommands: CommandGroup = (program, shell) => {
  const describe = program.command("describe").description("everything about one resource, and why it is where it is");
  const write = <T>(
    options: RemoteOptions,
    value: T,
    toJson: (value: T) => unknown,
    text: (value: T) => string,
  ): void => {
    if (options.json === true) writeJson(shell.io, toJson(value));
    else shell.io.out(text(value));
  };
  const missing = (what: string): CliError => new CliError(`${what} is not there`, EXIT.failed);

  takesRemote(describe.command("job <name>")).action((name: string, options: RemoteOptions) =>
    withClients(shell, options, async ({ jobs }) => {
      const answer = await call(jobs.explain.bind(jobs), { name });
      write(
        options,
        answer,
        (found) => JobServiceExplainResponse.toJSON(found),
        (value) => describeJob(value, shell.io.nowMs()),
      );
    }),
  );
  takesRemote(describe.command("device <name>")).action((name: string, options: RemoteOptions) =>
    withClients(shell, options, async ({ fleet }) => {
      const { device } = await call(fleet.getDevice.bind(fleet), { name });
      if (device === undefined) throw missing(`device ${name}`);
      write(
        options,
        device,
        (found) => DeviceWithLease.toJSON(found),
        (value) => describeDevice(value, shell.io.nowMs()),
      );
    }),
  );
  takesRemote(describe.command("round <name>").description("a round, named <job>-<number>")).action(
    (name: string, options: RemoteOptions) =>
      withClients(shell, options, async (clients) => {
        const rounds = await listRounds(clients, name.replace(/-\d+$/, ""));
        const found = rounds.find(({ round }) => round?.metadata?.name === name);
        if (found === undefined) throw missing(`round ${name}`);
        write(
          options,
          found,
          (found) => RoundWithResult.toJSON(found),
          (value) => describeRound(value, shell.io.nowMs()),
        );
      }),
  );
  takesRemote(describe.command("model <name>")).action((name: string, options: RemoteOptions) =>
    withClients(shell, options, async ({ models }) => {
      const { model } = await call(models.getModel.bind(models), { name });
      if (model === undefined) throw missing(`model ${name}`);
      write(
        options,
        model,
        (found) => Model.toJSON(found),
        (value) => describeModel(value, shell.io.nowMs()),
      );
    }),
  );
};
