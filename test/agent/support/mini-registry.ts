import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { NatsBus } from "#common/adapters/nats/bus.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { issueBootstrapUser, issueDeviceUser } from "#common/adapters/nats/credentials.js";
import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { deviceOf, subjects } from "#common/domain/subjects.js";
import {
  BlobRangeReply,
  BlobRangeRequest,
  HeartbeatReply,
  HeartbeatRequest,
  JoinBundle,
  JoinReply,
  JoinRequest,
  type AssignedTask,
} from "#proto/shoal/v1/device_wire.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { NatsTestServer } from "#test/support/servers.js";
import { tinyBlobs } from "./tiny-model.js";

const SECRET = "open sesame";

/** Answers devices on a real bus as the registry does, with tasks of the test. */
export class MiniRegistry {
  readonly joins: JoinRequest[] = [];
  readonly beats: HeartbeatRequest[] = [];
  readonly updates: NatsUpdateLog;
  tasks: AssignedTask[] = [];
  /** How long credentials are good. */
  validMs = 3_600_000;
  readonly #stop = new AbortController();
  readonly #publicKeys = new Map<string, string>();
  readonly #bus: NatsBus;

  constructor(
    private readonly server: NatsTestServer,
    private readonly link: NatsLink,
  ) {
    this.updates = new NatsUpdateLog(link);
    this.#bus = new NatsBus(link.nc, new MemoryLog());
    const options = { signal: this.#stop.signal };
    this.#bus.subscribe(subjects.joinAll, options, async (message) => {
      message.respond(JoinReply.encode(await this.#join(JoinRequest.decode(message.data))).finish());
    });
    this.#bus.subscribe(subjects.heartbeatAll, options, async (message) => {
      const beat = HeartbeatRequest.decode(message.data);
      this.beats.push(beat);
      message.respond(HeartbeatReply.encode(await this.#reply(deviceOf(message.subject) ?? "", beat)).finish());
    });
    this.#bus.subscribe(subjects.blobAll, options, (message) => {
      const { digest, offset, length } = BlobRangeRequest.decode(message.data);
      const data = Buffer.from(tinyBlobs.get(digest)?.slice(offset, offset + length) ?? []);
      message.respond(BlobRangeReply.encode(BlobRangeReply.fromPartial({ data })).finish());
    });
  }

  async token(tokenId: string, secret = SECRET): Promise<string> {
    const user = await issueBootstrapUser({
      deviceAccountSeed: this.server.root.deviceAccountSeed,
      tokenId,
      expiresAtMs: 0,
    });
    const bundle = { servers: [this.server.url], tokenId, secret, bootstrapJwt: user.jwt, bootstrapSeed: user.seed };
    return `shoal1.${Buffer.from(JoinBundle.encode(bundle).finish()).toString("base64url")}`;
  }

  async #jwt(device: string): Promise<string> {
    const publicKey = this.#publicKeys.get(device) ?? "";
    const expiresAtMs = new SystemClock().nowMs() + this.validMs;
    return issueDeviceUser({ deviceAccountSeed: this.server.root.deviceAccountSeed, device, publicKey, expiresAtMs });
  }

  async #join(request: JoinRequest): Promise<JoinReply> {
    this.joins.push(request);
    if (request.secret !== SECRET) {
      return JoinReply.fromPartial({ refusal: { reason: "TokenUnknown", message: "ask for another token" } });
    }
    this.#publicKeys.set(request.device, request.publicKey);
    return {
      refusal: undefined,
      device: request.device,
      jwt: await this.#jwt(request.device),
      servers: [this.server.url],
    };
  }

  async #reply(device: string, { renewCredential }: HeartbeatRequest): Promise<HeartbeatReply> {
    const open: AssignedTask[] = [];
    for (const task of this.tasks) if ((await this.commits(task.task?.round ?? "")).length === 0) open.push(task);
    const jwt = renewCredential ? await this.#jwt(device) : "";
    return HeartbeatReply.fromPartial({ tasks: open, nextHeartbeatMs: 200, atMs: new SystemClock().nowMs(), jwt });
  }

  publicKeyOf(device: string): string {
    return this.#publicKeys.get(device) ?? "";
  }

  async commits(round: string): Promise<UpdateManifest[]> {
    return (await this.updates.commits(round)).flatMap(({ manifest }) => (manifest === undefined ? [] : [manifest]));
  }

  give(device: string, tasks: AssignedTask[]): void {
    this.tasks = tasks;
    this.#bus.publish(subjects.nudge(device), new Uint8Array(0));
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.link.close();
  }
}
