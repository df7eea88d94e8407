import { valueOf } from "#common/adapters/grpc/answer.js";
import type { Handlers } from "#common/adapters/grpc/handlers.js";
import type { TelemetryServiceServer } from "#proto/shoal/v1/telemetry_service.js";
import type { TelemetryApi } from "./telemetry-api.js";

/** TelemetryService on gRPC. */
export function serveTelemetry(api: TelemetryApi, handlers: Handlers): TelemetryServiceServer {
  return {
    querySeries: handlers.unary(async (request) => valueOf(await api.querySeries(request))),
    watchEvents: handlers.serverStream((request, { signal }) => valueOf(api.watchEvents(request, signal))),
  };
}
