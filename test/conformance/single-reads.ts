import type { NatsLink } from "#common/adapters/nats/connection.js";

/** Counts from now on the messages that are read one by one, of a stream if its name is part of `api`. */
export function countSingles(own: NatsLink, api: string): () => number {
  let singles = 0;
  const request = own.nc.request.bind(own.nc);
  own.nc.request = (subject, ...rest) => {
    if (subject.includes(api)) singles += 1;
    return request(subject, ...rest);
  };
  return () => singles;
}
