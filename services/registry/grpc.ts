import { valueOf } from "#common/adapters/grpc/answer.js";
import type { Handlers } from "#common/adapters/grpc/handlers.js";
import type { FleetServiceServer } from "#proto/shoal/v1/fleet_service.js";
import type { ExportRequest, ExportResponse, ModelServiceServer } from "#proto/shoal/v1/model_service.js";
import type { FleetApi } from "./fleet-api.js";
import type { ModelApi } from "./model-api.js";

/** FleetService on gRPC. */
export function serveFleet(api: FleetApi, handlers: Handlers): FleetServiceServer {
  return {
    listDevices: handlers.unary(async (request) => valueOf(await api.listDevices(request))),
    getDevice: handlers.unary(async (request) => valueOf(await api.getDevice(request))),
    watchDevices: handlers.serverStream((request, { signal }) => valueOf(api.watchDevices(request, signal))),
    cordonDevice: handlers.unary(async (request) => valueOf(await api.cordonDevice(request))),
    drainDevice: handlers.unary(async (request) => valueOf(await api.drainDevice(request))),
    deleteDevice: handlers.unary(async (request) => valueOf(await api.deleteDevice(request))),
    issueJoinToken: handlers.unary(async (request) => valueOf(await api.issueJoinToken(request))),
    revokeJoinToken: handlers.unary(async (request) => valueOf(await api.revokeJoinToken(request))),
  };
}

/** ModelService on gRPC; the streams are read and written as fast as the other side goes. */
export function serveModels(api: ModelApi, handlers: Handlers): ModelServiceServer {
  async function* pieces(request: ExportRequest): AsyncGenerator<ExportResponse> {
    yield* valueOf(await api.export(request));
  }
  return {
    import: handlers.clientStream(async (requests) => valueOf(await api.import(requests))),
    export: handlers.serverStream((request) => pieces(request)),
    listModels: handlers.unary(async (request) => valueOf(await api.listModels(request))),
    getModel: handlers.unary(async (request) => valueOf(await api.getModel(request))),
    applyDataset: handlers.unary(async (request) => valueOf(await api.applyDataset(request))),
    listDatasets: handlers.unary(async (request) => valueOf(await api.listDatasets(request))),
  };
}
