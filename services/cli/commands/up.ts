import { ipAddress, oddNodes, wholeNumber } from "../arguments.js";
import { writeJson } from "../io.js";
import type { CommandGroup, Shell } from "../shell.js";

interface UpOptions {
  readonly dir: string;
  readonly replicas: number;
  readonly natsHost: string;
  readonly natsNodes: number;
  readonly json?: boolean;
}

const untilAborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve();
    else {
      // A pending timer keeps the process alive while only detached children run.
      const timer = setInterval(() => undefined, 60_000);
      signal.addEventListener("abort", () => {
        clearInterval(timer);
        resolve();
      });
    }
  });

/** Settings of the environment that services read and `up` does not choose itself. */
export function serviceSettings(env: Shell["io"]["env"]): Record<string, string> {
  const names = [
    "SHOAL_LOG_LEVEL",
    "SHOAL_HEARTBEAT_MS",
    "SHOAL_LEASE_MS",
    "SHOAL_RESYNC_MS",
    "SHOAL_UPDATES_MAX_BYTES",
    "SHOAL_LOG_RETAIN_ROUNDS",
    "SHOAL_BLOB_GRACE_MS",
    "SHOAL_FOLD_SUMS_MAX_BYTES",
    "SHOAL_PUBLIC_NATS_URLS",
  ];
  return Object.fromEntries(names.flatMap((name) => (env[name] === undefined ? [] : [[name, env[name]]])));
}

async function up(shell: Shell, options: UpOptions): Promise<void> {
  const { io } = shell;
  const { startControlPlane } = await import("../supervisor/control-plane.js");
  const plane = await startControlPlane({
    dir: options.dir,
    replicas: options.replicas,
    natsHost: options.natsHost,
    natsNodes: options.natsNodes,
    path: io.env["PATH"] ?? "",
    settings: serviceSettings(io.env),
    signal: shell.signal,
    say: (line) => io.err(`${line}\n`),
  });
  if (options.json === true) writeJson(io, plane.context);
  else {
    io.out(`control plane ready in ${options.dir}\n`);
    io.out(`  NATS       ${plane.context.natsUrl}\n`);
    for (const [service, addresses] of Object.entries(plane.context.grpc)) {
      io.out(`  ${service.padEnd(10)} ${addresses.join(", ")} (gRPC)\n`);
    }
    io.out(`Enrol a device: shoal token issue --context ${options.dir}; Ctrl-C drains and ends.\n`);
  }
  await untilAborted(shell.signal);
  io.err("draining\n");
  await plane.stop();
}

export const upCommands: CommandGroup = (program, shell) => {
  program
    .command("up")
    .description("run a control plane on this machine: NATS, Redis and all services")
    .option("--dir <dir>", "data, keys, logs and context; a restart continues from it", ".shoal")
    .option("--replicas <n>", "processes of each service", wholeNumber(1, 8), 1)
    .option("--nats-host <address>", "address of this machine at which devices reach NATS", ipAddress, "127.0.0.1")
    .option("--nats-nodes <n>", "NATS servers: 1, or 3 or 5 as a cluster", oddNodes, 1)
    .option("--json", "write the context as JSON once everything is ready")
    .action((options: UpOptions) => up(shell, options));
};
