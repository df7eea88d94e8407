import { status as grpcStatus } from "@grpc/grpc-js";
import { setTimeout as sleep } from "node:timers/promises";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { WatchEventType } from "#proto/shoal/v1/meta.js";
import { isServiceError, streamed, type Clients } from "../calls.js";
import { CliError, EXIT, type ExitCode } from "../exit.js";
import { formatBytes, formatDuration, formatLoss } from "../output/format.js";
import { formatBar, LiveArea } from "../output/progress.js";
import { takesRemote, withClients, type CommandGroup, type RemoteOptions, type Shell } from "../shell.js";

const BAR_CELLS = 30;
const RECONNECT_MS = 500;
/** Tries in a row without a message after which the control plane counts as gone. */
const MAX_TRIES = 20;

/** Exit code of a finished job; undefined while it runs. */
export function outcomeOf(job: TrainingJob): ExitCode | undefined {
  switch (job.status?.phase) {
    case "Completed":
      return EXIT.ok;
    case "Failed":
    case "Cancelled":
      return EXIT.failed;
    default:
      return undefined;
  }
}

/** The job's progress as one plain line. */
export function progressLine(job: TrainingJob): string {
  const status = job.status;
  return [
    `${job.metadata?.name ?? ""} ${status?.phase ?? "Pending"}`,
    `round ${status?.completedRounds ?? 0}/${job.spec?.rounds ?? 0}`,
    `train ${formatLoss(status?.trainLoss)}`,
    `held-out ${formatLoss(status?.evalLoss)}`,
    `${formatBytes(status?.bytesUp ?? 0)} up, ${formatBytes(status?.bytesDown ?? 0)} down`,
  ].join("  ");
}

/** The job's progress with a bar and the time that is left if rounds go on as they did. */
export function progressBarLine(job: TrainingJob, nowMs: number): string {
  const done = job.status?.completedRounds ?? 0;
  const total = job.spec?.rounds ?? 0;
  const startedAtMs = job.status?.startedAtMs ?? 0;
  const running = outcomeOf(job) === undefined;
  const leftMs = done > 0 && startedAtMs > 0 && running ? ((nowMs - startedAtMs) / done) * (total - done) : undefined;
  const left = leftMs === undefined ? "" : `  ${formatDuration(leftMs)} left`;
  return `${formatBar(done, total, BAR_CELLS)}  ${progressLine(job)}${left}`;
}

/**
 * A job, each time it changed, until it is finished or the signal aborts. Reconnects and resumes where it was.
 * @throws ServiceError NOT_FOUND, or CliError if the control plane stays away
 */
export async function* jobChanges(
  { jobs }: Clients,
  name: string,
  signal: AbortSignal,
): AsyncGenerator<TrainingJob, void, undefined> {
  let resourceVersion = "";
  let seen = false;
  for (let tries = 0; tries < MAX_TRIES && !signal.aborted; tries++) {
    try {
      const stream = jobs.watch({ name, resourceVersion, labelSelector: {} });
      for await (const event of streamed(stream, signal)) {
        tries = 0;
        resourceVersion = event.resourceVersion === "" ? resourceVersion : event.resourceVersion;
        if (event.type === WatchEventType.DELETE) throw new CliError(`job ${name} was deleted`);
        if (event.type === WatchEventType.SYNCED && !seen) throw new CliError(`job ${name} is not there`);
        if (event.job === undefined || event.type !== WatchEventType.PUT) continue;
        seen = true;
        yield event.job;
        if (outcomeOf(event.job) !== undefined) return;
      }
    } catch (error) {
      const passing = isServiceError(error) && [grpcStatus.UNAVAILABLE, grpcStatus.CANCELLED].includes(error.code);
      if (!passing) throw error;
    }
    await sleep(RECONNECT_MS);
  }
  if (!signal.aborted) throw new CliError("the scheduler cannot be reached any more", EXIT.unavailable);
}

async function watchJob(shell: Shell, name: string, options: RemoteOptions): Promise<void> {
  const { io } = shell;
  const live = new LiveArea((text) => io.out(text), io.terminal, io.width);
  await withClients(shell, options, async (clients) => {
    let before = "";
    for await (const job of jobChanges(clients, name, shell.signal)) {
      const outcome = outcomeOf(job);
      if (outcome !== undefined) shell.exit(outcome);
      if (options.json === true) {
        io.out(`${JSON.stringify(TrainingJob.toJSON(job))}\n`);
      } else if (io.terminal) {
        live.show([progressBarLine(job, io.nowMs())]);
      } else if (progressLine(job) !== before) {
        before = progressLine(job);
        io.out(`${before}\n`);
      }
    }
  });
}

export const watchCommands: CommandGroup = (program, shell) => {
  const watch = program.command("watch").description("follow a resource until it is finished");
  takesRemote(
    watch.command("job <name>").description("exit code 0 when it completes, 1 when it fails or is cancelled"),
  ).action((name: string, options: RemoteOptions) => watchJob(shell, name, options));
};
