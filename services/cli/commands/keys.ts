import { join, resolve } from "node:path";
import { credsPaths, ensureKeys, writeSecret } from "#common/adapters/nats/keys.js";
import { natsServerConfig } from "#common/adapters/nats/server-config.js";
import { wholeNumber } from "../arguments.js";
import { writeJson } from "../io.js";
import type { CommandGroup, Shell } from "../shell.js";

interface InitOptions {
  readonly dir: string;
  readonly natsData: string;
  readonly natsPort: number;
  readonly monitorPort?: number;
  readonly websocketPort?: number;
  readonly json?: boolean;
}

const port = wholeNumber(1, 65_535);

/** Makes the trust root where there is none, and writes a nats-server configuration that goes with it. */
async function init({ io }: Shell, options: InitOptions): Promise<void> {
  const dir = resolve(options.dir);
  const root = await ensureKeys(dir);
  const { monitorPort, websocketPort } = options;
  const config = natsServerConfig({
    root,
    dataDir: options.natsData,
    host: "0.0.0.0",
    port: options.natsPort,
    ...(monitorPort === undefined ? {} : { monitor: { host: "0.0.0.0", port: monitorPort } }),
    ...(websocketPort === undefined ? {} : { websocketPort }),
  });
  const files = { keys: join(dir, "trust.json"), creds: credsPaths(dir).service, natsConfig: join(dir, "nats.conf") };
  await writeSecret(files.natsConfig, config);
  if (options.json === true) writeJson(io, files);
  else io.out(`keys in ${files.keys}\nservices connect with ${files.creds}\nnats-server -c ${files.natsConfig}\n`);
}

export const keysCommands: CommandGroup = (program, shell) => {
  const keys = program.command("keys").description("the keys all credentials of a control plane derive from");
  keys
    .command("init")
    .description("make keys and a nats-server configuration; keys that exist stay as they are")
    .requiredOption("--dir <dir>", "where keys, credentials and nats.conf are written, readable by their owner only")
    .option("--nats-data <dir>", "where nats-server keeps its data", "/data")
    .option("--nats-port <port>", "port nats-server listens on", port, 4222)
    .option("--monitor-port <port>", "port of nats-server's monitoring pages", port)
    .option("--websocket-port <port>", "port for devices that come by WebSocket", port)
    .option("--json", "write JSON for programs")
    .action((options: InitOptions) => init(shell, options));
};
