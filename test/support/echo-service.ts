import type { TelemetryServiceServer } from "#proto/shoal/v1/telemetry_service.js";
import {
  QuerySeriesResponse,
  TelemetryServiceService,
  WatchEventsResponse,
} from "#proto/shoal/v1/telemetry_service.js";
import { invalidArgument } from "#common/adapters/grpc/errors.js";
import { hostService } from "#common/adapters/service-host.js";
import { Controller } from "#common/runtime/controller.js";
import { storeSource } from "#common/runtime/source.js";

/** The smallest service with everything in it: tests run it as a process of its own. */
await hostService("echo", (host) => {
  const telemetry: TelemetryServiceServer = {
    querySeries: host.handlers.unary((request) => {
      if (request.job === "") throw invalidArgument([{ field: "job", value: "", description: "is required" }]);
      return Promise.resolve(QuerySeriesResponse.fromPartial({ points: [{ job: request.job, value: 1 }] }));
    }),
    watchEvents: host.handlers.serverStream(async function* (request, { signal }) {
      const options = { afterSeq: request.afterSeq, pastOnly: request.pastOnly, signal };
      for await (const event of host.eventLog.events(options)) yield WatchEventsResponse.fromPartial({ event });
    }),
  };
  host.grpc.addService(TelemetryServiceService, telemetry);
  const controller = new Controller({
    name: "echo-controller",
    sources: [storeSource(host.store, "Lease")],
    queue: host.queue("echo"),
    clock: host.clock,
    log: host.log,
    metrics: host.metrics,
    random: Math.random,
    resyncMs: host.config.resyncMs,
    reconcile: (key) => {
      host.log.info("reconciled", { key });
      return Promise.resolve({ type: "done" });
    },
  });
  host.background("echo-controller", (signal) => controller.run(signal));
  return Promise.resolve();
});
