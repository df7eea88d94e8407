import { Server, ServerCredentials, type ServiceDefinition, type UntypedServiceImplementation } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { CodedError } from "../coded-error.js";
import { addReflection } from "./reflection.js";

/** Largest message either way, bytes: pieces of models are at most 1 MiB, resources far smaller. */
export const MAX_MESSAGE_BYTES = 8 * 1024 * 1024;

/** A gRPC server with health and reflection. */
export class GrpcServer {
  private readonly server = new Server({
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
  });
  private readonly health = new HealthImplementation({ "": "NOT_SERVING" });
  private readonly services = new Set<string>();

  /** Adds a service; before `listen`. */
  addService(definition: ServiceDefinition, implementation: UntypedServiceImplementation): void {
    this.server.addService(definition, implementation);
    const path = Object.values(definition)[0]?.path ?? "";
    const name = path.split("/")[1] ?? "";
    this.services.add(name);
    this.health.setStatus(name, "NOT_SERVING");
  }

  /** Opens the port and answers; resolves to the port. Throws code "LISTEN_FAILED". */
  async listen(address: { host: string; port: number }): Promise<number> {
    this.health.addToServer(this.server);
    await addReflection(this.server, [...this.services]);
    const host = address.host.includes(":") ? `[${address.host}]` : address.host;
    return new Promise((resolve, reject) => {
      this.server.bindAsync(`${host}:${address.port}`, ServerCredentials.createInsecure(), (error, port) => {
        if (error === null) resolve(port);
        else reject(new CodedError("LISTEN_FAILED", `cannot listen on ${host}:${address.port}: ${error.message}`));
      });
    });
  }

  /** What health checks are told. */
  setServing(serving: boolean): void {
    for (const name of ["", ...this.services]) this.health.setStatus(name, serving ? "SERVING" : "NOT_SERVING");
  }

  /** Takes no new calls and waits for open ones; after the bound they are cut. */
  async stop(boundMs: number): Promise<void> {
    this.setServing(false);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => {
        this.server.forceShutdown();
        resolve();
      }, boundMs);
      this.server.tryShutdown(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}
