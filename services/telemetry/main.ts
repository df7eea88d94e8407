import { hostService } from "#common/adapters/service-host.js";
import { TelemetryServiceService } from "#proto/shoal/v1/telemetry_service.js";
import { Gauges } from "./gauges.js";
import { serveTelemetry } from "./grpc.js";
import { watchLogSpace } from "./log-watch.js";
import { Recorder } from "./recorder.js";
import { TelemetryApi } from "./telemetry-api.js";

await hostService("telemetry", (host) => {
  const { clock, eventLog, grpc, handlers, log, metrics, store } = host;
  const recorder = new Recorder({ store, events: eventLog, clock, log, metrics });
  const gauges = new Gauges({ store, clock, metrics }, (found) => recorder.record(found, host.signal));
  host.background("recorder", (signal) => recorder.run(signal, () => log.info("recorded what exists")));
  host.background("space of the update log", (signal) =>
    watchLogSpace({ log: host.updateLog, clock, journal: log }, (found) => recorder.record(found, signal), signal),
  );
  host.background("gauges", (signal) => gauges.run(signal));
  grpc.addService(TelemetryServiceService, serveTelemetry(new TelemetryApi(eventLog), handlers));
  return Promise.resolve();
});
