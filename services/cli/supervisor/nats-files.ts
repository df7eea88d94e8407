import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { credsPaths, ensureKeys } from "#common/adapters/nats/keys.js";
import { natsServerConfig } from "#common/adapters/nats/server-config.js";
import type { PortOfName } from "./decision.js";
import { writeAtomically } from "./state.js";
import { clusterPortName, HOST, monitorPortName, natsNames, portOf } from "./units.js";

/**
 * Makes the keys at the first start and writes a configuration for each server, with a data folder of its own under
 * its name. Servers of a cluster reach each other on the loopback address.
 */
export async function prepareNats(place: {
  readonly dir: string;
  readonly keysDir: string;
  readonly host: string;
  readonly nodes: number;
  readonly ports: PortOfName;
}): Promise<{ configFiles: string[]; credsFile: string }> {
  const { dir, host, ports } = place;
  const root = await ensureKeys(place.keysDir);
  const names = natsNames(place.nodes);
  const listener = (name: string): { host: string; port: number } => ({
    host: HOST,
    port: portOf(ports, clusterPortName(name)),
  });
  const configFiles = names.map((name) => {
    const dataDir = join(dir, name);
    mkdirSync(dataDir, { recursive: true });
    const peers = names.filter((other) => other !== name);
    const cluster =
      names.length === 1 ? {} : { serverName: name, cluster: { ...listener(name), peers: peers.map(listener) } };
    const monitor = { host: HOST, port: portOf(ports, monitorPortName(name)) };
    const configFile = join(dataDir, "nats.conf");
    writeAtomically(
      configFile,
      natsServerConfig({ root, dataDir, host, port: portOf(ports, name), monitor, ...cluster }),
      0o600,
    );
    return configFile;
  });
  return { configFiles, credsFile: credsPaths(place.keysDir).service };
}
