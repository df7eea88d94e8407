import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { credsPaths, ensureKeys } from "#common/adapters/nats/keys.js";
import { natsServerConfig } from "#common/adapters/nats/server-config.js";
import { writeAtomically } from "./state.js";

/** Makes the keys at the first start and writes the server's configuration for this port. */
export async function prepareNats(place: {
  readonly dir: string;
  readonly keysDir: string;
  readonly port: number;
}): Promise<{ configFile: string; credsFile: string }> {
  const root = await ensureKeys(place.keysDir);
  const dataDir = join(place.dir, "nats");
  mkdirSync(dataDir, { recursive: true });
  const configFile = join(dataDir, "nats.conf");
  writeAtomically(configFile, natsServerConfig({ root, dataDir, host: "127.0.0.1", port: place.port }), 0o600);
  return { configFile, credsFile: credsPaths(place.keysDir).service };
}
