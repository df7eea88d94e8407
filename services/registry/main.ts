import { randomBytes } from "node:crypto";
import { CodedError } from "#common/adapters/coded-error.js";
import { readKeys } from "#common/adapters/nats/keys.js";
import { hostService, type ServiceHost } from "#common/adapters/service-host.js";
import { subjects } from "#common/domain/subjects.js";
import { FleetServiceService } from "#proto/shoal/v1/fleet_service.js";
import { ModelServiceService } from "#proto/shoal/v1/model_service.js";
import { AssignmentIndex } from "./assignment-index.js";
import { DevicePlane } from "./device-plane.js";
import { FleetApi } from "./fleet-api.js";
import { serveFleet, serveModels } from "./grpc.js";
import { ModelApi } from "./model-api.js";
import { NatsCredentials } from "./nats-credentials.js";

async function openCredentials(host: ServiceHost): Promise<NatsCredentials> {
  const { config, clock, log, signal } = host;
  const root = config.keysDir === undefined ? undefined : await readKeys(config.keysDir);
  if (config.keysDir === undefined || root === undefined) {
    throw new CodedError("BAD_CONFIG", "SHOAL_KEYS_DIR must name the directory with the keys that NATS trusts");
  }
  const { keysDir, natsUrls } = config;
  const credentials = new NatsCredentials({ root, keysDir, natsUrls, clock, log, signal });
  host.onStop("revocations", () => credentials.close());
  return credentials;
}

await hostService("registry", async (host) => {
  const { bus, config, grpc, handlers, signal } = host;
  const credentials = await openCredentials(host);
  const ports = { ...host, credentials, publicServers: config.publicNatsUrls };

  const index = new AssignmentIndex(host.store, (devices) => {
    // Who sits behind a gateway hears of it through that one.
    const told = [...devices, ...plane.gatewaysOf(devices)];
    for (const device of told) bus.publish(subjects.nudge(device), new Uint8Array());
  });
  const plane = new DevicePlane({ ...ports, index, heartbeatMs: config.heartbeatMs, leaseMs: config.leaseMs });
  const synced = new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => resolve(), { once: true });
    host.background("assignment index", () => index.follow(signal, resolve));
  });
  await synced;
  plane.serve(signal);

  grpc.addService(FleetServiceService, serveFleet(new FleetApi({ ...ports, randomBytes }), handlers));
  grpc.addService(ModelServiceService, serveModels(new ModelApi(host), handlers));
});
