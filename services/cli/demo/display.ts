import type { DeviceWithLease } from "#proto/shoal/v1/fleet_service.js";
import { formatBytes, formatCount, formatDuration, formatLoss } from "../output/format.js";
import { formatBar } from "../output/progress.js";
import { formatTable } from "../output/table.js";
import type { DemoDevice } from "./fleet.js";
import type { DemoReport, RoundReport } from "./report.js";
import type { DemoShard } from "./shards.js";

const BAR_CELLS = 24;

/** What the devices hold, as a table. */
export function shardTable(shards: readonly DemoShard[], devices: readonly DemoDevice[]): string {
  return formatTable(
    [
      { title: "DEVICE", cell: ([shard]) => shard.device },
      { title: "SPEED", cell: ([, device]) => device?.speed.name ?? "" },
      { title: "YEARS", cell: ([shard]) => shard.years.join("-") },
      { title: "PRIVATE TEXT", right: true, cell: ([shard]) => formatBytes(shard.bytes) },
      { title: "PRESIDENTS", cell: ([shard]) => shard.presidents.join(", ") },
    ],
    shards.map((shard, i) => [shard, devices[i]] as const),
  );
}

/** A finished round on one line. */
export function roundLine(round: RoundReport, rounds: number): string {
  const number = `${round.round}/${rounds}`.padStart(2 * String(rounds).length + 1);
  return [
    `round ${number}`,
    `cohort ${round.folded}/${round.cohort}${round.refused > 0 ? ` (${round.refused} refused)` : ""}`,
    `train ${formatLoss(round.trainLoss)}`,
    `held-out before ${formatLoss(round.evalLoss ?? undefined)}`,
    `${formatBytes(round.bytesUp)} up, ${formatBytes(round.bytesDown)} down`,
    `${round.seconds.toFixed(1)} s`,
  ].join("  ");
}

/** A bar per device with its step in the round under way. */
export function deviceBars(devices: readonly DeviceWithLease[], speeds: ReadonlyMap<string, string>): string[] {
  const width = Math.max(0, ...devices.map(({ device }) => device?.metadata?.name.length ?? 0));
  return devices.map(({ device, alive }) => {
    const name = device?.metadata?.name ?? "";
    const doing = device?.status?.assignments.at(-1);
    const bar = formatBar(doing?.step ?? 0, doing?.steps ?? 0, BAR_CELLS);
    const steps = `${doing?.step ?? 0}/${doing?.steps ?? 0}`.padStart(7);
    const state = alive ? (doing?.phase ?? "idle") : "gone";
    const loss = doing !== undefined && doing.loss > 0 ? formatLoss(doing.loss) : "-";
    return `  ${name.padEnd(width)}  ${(speeds.get(name) ?? "").padEnd(6)}  ${bar} ${steps}  loss ${loss.padEnd(6)}  ${state}`;
  });
}

/** The closing account for people. */
export function summary(report: DemoReport): string {
  const { final, bytes, samples } = report;
  const worse = final.localOnlyLoss.devices.filter(({ loss }) => loss <= final.federatedLoss);
  const verdict =
    worse.length === 0
      ? "the federated model is better than every model trained alone"
      : `the federated model is NOT better than ${worse.map(({ device }) => device).join(", ")} alone`;
  const rows: (readonly [string, string])[] = [
    ["before training", formatLoss(final.initialLoss)],
    ["federated", formatLoss(final.federatedLoss)],
    ["alone, best device", formatLoss(final.localOnlyLoss.best)],
    ["alone, mean of devices", formatLoss(final.localOnlyLoss.mean)],
    [`all text in one place, ${final.centralisedSteps} steps`, formatLoss(final.centralisedLoss)],
  ];
  const losses = formatTable(
    [
      { title: "HELD-OUT LOSS (all devices' held-out text, nats a byte)", cell: ([what]) => what },
      { title: "", right: true, cell: ([, loss]) => loss },
    ],
    rows,
  );
  return `
${losses}
${verdict}
${formatCount(report.parameters)} parameters, ${report.rounds.length} rounds, ${formatBytes(bytes.up)} up and ${formatBytes(bytes.down)} down: ${bytes.perStepFp32Ratio.toFixed(0)} times less than fp32 gradients at every step
federated ${formatDuration(report.seconds.federated * 1000)}, baselines ${formatDuration(report.seconds.baselines * 1000)}, all ${formatDuration(report.seconds.total * 1000)}

before: ${JSON.stringify(samples.prompt + samples.before)}
after:  ${JSON.stringify(samples.prompt + samples.after)}

checkpoint: ${report.checkpoint} (config.json, model.safetensors)
`;
}
