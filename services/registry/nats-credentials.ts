import { readFile } from "node:fs/promises";
import { issueBootstrapUser, issueDeviceUser, revokeUsers, type TrustRoot } from "#common/adapters/nats/credentials.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CredentialIssuer } from "./credentials.js";

export interface TrustPorts {
  readonly root: TrustRoot;
  readonly keysDir: string;
  readonly natsUrls: readonly string[];
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** Issues with the account's seed; revokes through a connection of the system user, opened when first needed. */
export class NatsCredentials implements CredentialIssuer {
  private system: Promise<NatsLink> | undefined;
  /** Asked for while an earlier revocation is on its way. */
  private waiting = new Map<string, number>();
  /** The revocation of those who wait; undefined without any. */
  private next: Promise<void> | undefined;
  private last: Promise<void> = Promise.resolve();

  constructor(private readonly ports: TrustPorts) {}

  issueDevice(device: string, publicKey: string, expiresAtMs: number): Promise<string> {
    return issueDeviceUser({ deviceAccountSeed: this.ports.root.deviceAccountSeed, device, publicKey, expiresAtMs });
  }

  issueBootstrap(tokenId: string, expiresAtMs: number): Promise<{ jwt: string; seed: string }> {
    return issueBootstrapUser({ deviceAccountSeed: this.ports.root.deviceAccountSeed, tokenId, expiresAtMs });
  }

  /** One after the other, and together whoever waits: each is a change of the same text, and of many at once most are redone. */
  revoke(publicKey: string): Promise<void> {
    this.waiting.set(publicKey, this.ports.clock.nowMs());
    this.next ??= this.revokeWaiting(this.last);
    this.last = this.next;
    return this.next;
  }

  private async revokeWaiting(earlier: Promise<void>): Promise<void> {
    await earlier.catch(() => undefined);
    const users = this.waiting;
    this.waiting = new Map();
    this.next = undefined;
    const { nc } = await this.connect();
    await revokeUsers(nc, this.ports.root, users);
  }

  /** Closes what `revoke` opened. */
  async close(): Promise<void> {
    await (await this.system?.catch(() => undefined))?.close();
  }

  private connect(): Promise<NatsLink> {
    const opening = this.system ?? this.open();
    this.system = opening;
    opening.catch(() => {
      this.system = undefined;
    });
    return opening;
  }

  private async open(): Promise<NatsLink> {
    const { keysDir, natsUrls, clock, log, signal } = this.ports;
    const creds = await readFile(credsPaths(keysDir).system, "utf8");
    return NatsLink.connect({ servers: [...natsUrls], creds, name: "registry (revocations)", clock, log, signal });
  }
}
