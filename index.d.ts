import { EventEmitter } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { ConnectionOptions } from 'node:tls';

import type {
  Extension,
  onConfigurePayload,
  onDestroyPayload,
  onListenPayload,
  onRequestPayload,
  onUpgradePayload,
} from '@hocuspocus/server';

// SmartRoute defines `server.extensions` where Hocuspocus does not, so that an application can find
// the extension from its server. Its readiness is the one thing looked for there.
declare module '@hocuspocus/server' {
  interface Server<Context = any> {
    /** The extensions the server is configured with. Defined once SmartRoute is configured. */
    readonly extensions: Array<Extension<Context> & { readonly isInitialized?: boolean }>;
  }
  // Told to hooks of extensions with a lower priority, and to the server's own.
  interface onLoadDocumentPayload<Context = any> {
    /** Where routing is enforced. */
    smartRoute?: Fencing;
  }
  interface onStoreDocumentPayload<Context = any> {
    /** Where routing is enforced. */
    smartRoute?: Fencing;
  }
}

/** For databases that refuse writes of earlier owners. */
export interface Fencing {
  /** {@link SmartRoute.epochOf} of the document. */
  readonly epoch: number;
}

/**
 * What the node a client reached does with a document that another node owns:
 * `'proxy'` carries the traffic to the owner, `'redirect'` tells clients that use
 * `@hocuspocus/extension-smartroute/client` where the owner is ({@link SmartRouteConfiguration.publicUrl})
 * and carries the traffic of all others, `'reject'` refuses the document: `authenticationFailed` at the
 * provider, with a reason that names the owner. When a document moves away, `'reject'` closes the sockets of its
 * clients (1012, which providers retry) once it has been handed over.
 */
export type MisrouteMode = 'proxy' | 'redirect' | 'reject';

/**
 * Whether routing is enforced on a node: `'enforced'`, and an extension-redis beside SmartRoute is
 * suspended; `'bridging'`, enforced with that extension active, because other nodes do not enforce it
 * (yet, or any more); `'open'`, every node serves what its clients ask for, with that extension active.
 */
export type EnforcementMode = 'enforced' | 'bridging' | 'open';

/** Another node of the cluster, as it is configured. */
export interface ClusterNode {
  /** Its `nodeId`. 1 to 255 bytes in UTF-8, no control characters. */
  id: string;
  /**
   * Host name, IPv4 or IPv6 address to reach it at; without scheme or port. Brackets around IPv6 are
   * taken off. `0.0.0.0` and `::` are refused: nobody can connect to them.
   */
  address: string;
  /** The port it advertises (its `nodePort`), 1 to 65535. */
  port: number;
  /** Its `nodeWeight`: above 0, at most 1000. Default `1`. */
  weight?: number | null;
  /** Its `linkPort`, if it has one, 1 to 65535. Default: links go to `port`. */
  linkPort?: number | null;
}

/**
 * How the health of the other nodes is checked: a TCP connection and a request to their health
 * endpoint, at the port that links are opened at. Whatever is left out keeps its default. What one
 * node finds moves no documents.
 */
export interface HealthCheck {
  /** Milliseconds from the start of one check to the start of the next, from 1. Default `5000`. */
  interval?: number | null;
  /**
   * Milliseconds after which an unanswered check has failed, from 1. Default `3000`. It may be
   * longer than `interval`: the next check then starts when this one has ended.
   */
  timeout?: number | null;
  /**
   * Number of failed checks in a row that make a node unhealthy: 1 to 1000, where 1 means the first
   * failure. `0` is an error, because it could mean either "at once" or "never". One check that
   * passes makes it healthy again. Default `3`.
   */
  retries?: number | null;
  /**
   * While a node is unhealthy, each failed check multiplies the time to the next one by this, from 1.
   * Default `2`.
   */
  backoffMultiplier?: number | null;
  /**
   * Longest time between two checks of an unhealthy node in milliseconds, from 1; less than `interval`
   * counts as `interval`. Default `30000`.
   */
  maxBackoff?: number | null;
  /**
   * Request path of the health endpoint: `/` and up to 200 of `A-Z a-z 0-9 . _ ~ / -`. The same on
   * all nodes. Default `'/.smartroute/health'`.
   */
  path?: string | null;
}

/** TLS between the nodes. Everything in PEM, as text or bytes. */
export interface ClusterTls {
  /** Certificates of the authorities that sign those of the nodes; no other is trusted, also not those that Node trusts. */
  ca: string | Uint8Array | readonly (string | Uint8Array)[];
  /**
   * This node's certificate, with its chain. It is shown to nodes that dial, so its subject alternative
   * names have to contain the address that they dial (`nodeAddress`), and to nodes that are dialed.
   */
  cert: string | Uint8Array;
  /** Its key. */
  key: string | Uint8Array;
  /** What the key is encrypted with. Default: it is not. */
  passphrase?: string | null;
}

/** TLS to Redis, as ioredis and `tls.connect()` spell it. Everything in PEM, as text or bytes. */
export interface RedisTls {
  /** Certificates to trust. Default: those that Node trusts. */
  ca?: string | Uint8Array | readonly (string | Uint8Array)[] | null;
  /** Client certificate with its chain. Needs `key`. */
  cert?: string | Uint8Array | null;
  /** Key of the client certificate, not encrypted. Needs `cert`. */
  key?: string | Uint8Array | null;
  /** Name to expect in the server's certificate. Default: the host. */
  servername?: string | null;
  /** `false` accepts any certificate, and so anyone between here and Redis. Default `true`. */
  rejectUnauthorized?: boolean | null;
}

/** A server of Redis. */
export interface RedisServer {
  /** Default `'127.0.0.1'`. */
  host?: string | null;
  /** Default `6379`; `26379` for sentinels. Text is taken too. */
  port?: number | string | null;
}

/**
 * Where Redis is, in the words of ioredis: one server by `host` and `port` or by `path`, a master
 * named by `sentinels`, or `nodes` of a Redis Cluster. Further options of ioredis, such as
 * `retryStrategy` or `keyPrefix`, are about its own connections and keys; they are taken and do
 * nothing here.
 */
export interface RedisConfiguration extends RedisServer {
  /** A Unix socket in place of `host` and `port`. */
  path?: string | null;
  /** ACL user. Default: the one that Redis calls `default`. */
  username?: string | null;
  /** Its password. Shown nowhere. */
  password?: string | null;
  /** Number of the database, from 0. A Redis Cluster has only 0. Default `0`. */
  db?: number | string | null;
  /** `true` for TLS with its usual options. Default: plain TCP. */
  tls?: RedisTls | boolean | null;
  /** Sentinels to ask; the others are learned from them. Needs `name`. */
  sentinels?: readonly RedisServer[] | null;
  /** What the sentinels call the master. */
  name?: string | null;
  /** ACL user at the sentinels. */
  sentinelUsername?: string | null;
  /** Password at the sentinels. */
  sentinelPassword?: string | null;
  /** TLS to the sentinels. Default: plain TCP. */
  sentinelTLS?: RedisTls | boolean | null;
  /** As in ioredis: with `sentinels`, `tls` is for the master only where this is `true`. Default `false`. */
  enableTLSForSentinelMode?: boolean | null;
  /** Some nodes of a Redis Cluster; the others are learned from them. */
  nodes?: readonly (RedisServer | string | number)[] | null;
  /** Where an address that sentinels or Cluster nodes announce, as `host:port`, is reached from here. */
  natMap?: { readonly [announced: string]: RedisServer } | null;
}

/** An ioredis client, of which only the options are read; a `Cluster` too. */
export interface RedisClientLike {
  readonly options: object;
  duplicate(...parameters: any[]): any;
}

/**
 * Where SmartRoute writes: a console-shaped logger gets text; a pino-shaped one (it has `child`, `trace`
 * and `fatal`) gets an object of fields first (`node`, `epoch`, `event`, `document`, …) and the text after it.
 */
export interface Logger {
  debug(...values: any[]): void;
  info(...values: any[]): void;
  warn(...values: any[]): void;
  error(...values: any[]): void;
}

/**
 * Chooses the node for a document, or leaves it to the ring with `null` or `undefined`.
 *
 * @param documentId Name of the document.
 * @param availableNodes Active members of the cluster, the calling node included, sorted by id; frozen.
 */
export type CustomRoutingFunction = (
  documentId: string,
  availableNodes: readonly NodeInfo[],
) => Pick<NodeInfo, 'id'> | null | undefined;

/**
 * The options of {@link SmartRoute}. All are optional, `null` and `undefined` both mean "not set",
 * and a wrong value or an unknown name throws `ERR_SMARTROUTE_OPTION` from the constructor.
 */
export interface SmartRouteConfiguration {
  /**
   * Name of this node, different from every other node's. 1 to 255 bytes in UTF-8, no control
   * characters. Default: host name and port, known once the server listens; in a cluster a
   * warning says so, because documents move when the name changes.
   */
  nodeId?: string | null;
  /**
   * Host name, IPv4 or IPv6 address at which the other nodes reach this one; without scheme or
   * port. Brackets around IPv6 are taken off; `0.0.0.0` and `::` are refused. Default `'127.0.0.1'`.
   */
  nodeAddress?: string | null;
  /**
   * The port at which the other nodes reach this one, 1 to 65535. It may be mapped to the port the
   * server listens on; where the two differ a warning names both. It does not make the server
   * listen there. A numeric string is an error. Default: the port the server listens on, which for
   * Hocuspocus is 80 unless it is told otherwise.
   */
  nodePort?: number | null;
  /**
   * Share of the documents this node takes, relative to the other nodes' weights: above 0, at most
   * 1000, fractions allowed. Default `1`.
   */
  nodeWeight?: number | null;
  /**
   * Other nodes to start from; one that runs is enough to find the rest. An entry with the own
   * `nodeId` is ignored, so every node can be given the same list; the same id twice is an error
   * that names both places. Default `[]`: a node of its own.
   */
  clusterNodes?: readonly ClusterNode[] | null;
  /**
   * `false` serves every document on the node the client reached, with an extension-redis beside this
   * fully active; nodes that enforce routing keep theirs active too as long as there is one that does
   * not. Default `true`.
   */
  enforceRouting?: boolean | null;
  /**
   * `true` is another way to write `onMisroute: 'redirect'`. A contradiction between the two is an
   * error. Default: whatever `onMisroute` says, and that is `false` by default.
   */
  redirectOnMisroute?: boolean | null;
  /** What happens to documents that another node owns; see {@link MisrouteMode}. Default `'proxy'`. */
  onMisroute?: MisrouteMode | null;
  /**
   * With `onMisroute: 'redirect'`, the URL at which clients reach this node and no other: `ws://` or `wss://`,
   * without user, query and fragment. A client keeps its own query, and its own path where this has none. It never goes
   * from `wss://` to `ws://`. The other nodes ask for it once they are linked. Default: none, and then the
   * others carry their clients' traffic to this node; with `'redirect'` a warning says so once.
   */
  publicUrl?: string | null;
  /** How the other nodes' health is checked. Default: each field's own. */
  healthCheck?: HealthCheck | null;
  /**
   * Milliseconds for which a node stays a member without a sign of life, 1 to 2147483647. Nodes that
   * are evicted too easily need a longer one. With Redis it is the lease: renewed nine times in it, and
   * a node that cannot renew it, nor hears that its peers cannot either, stops serving before it ends.
   * Default: `healthCheck.interval + healthCheck.timeout × healthCheck.retries`, which is `14000` by
   * their defaults.
   */
  leaseDuration?: number | null;
  /**
   * Milliseconds, 1000 to 2147483647, after which a node counts as unhealthy although its process
   * answers: its JavaScript has not completed a turn of its event loop for so long. Default:
   * `leaseDuration`, and `1000` at least.
   */
  stallTimeout?: number | null;
  /**
   * Milliseconds after which the member list in Redis is asked for without an occasion, 1 to
   * 2147483647. Changes are passed on at once; this repairs what was missed. Without effect without
   * Redis. `0` is an error. Default `30000`.
   */
  syncInterval?: number | null;
  /**
   * Milliseconds one document's move may take, 1 to 2147483647; also how long frames wait for an
   * owner that cannot be reached. A document whose move times out stays where it is. `0` is an
   * error. Default `60000`.
   */
  migrationTimeout?: number | null;
  /**
   * Documents that this node hands over at the same time, 1 to 1024. Others wait their turn, first
   * in, first out, save that those somebody waits for go first. `0` is an error. Default `16`.
   */
  migrationConcurrency?: number | null;
  /**
   * Milliseconds within which a node that ends has handed over its documents, or stored those that no
   * node took. Stay below what kills the process: Kubernetes gives 30 s. Default `25000`.
   */
  drainTimeout?: number | null;
  /**
   * Milliseconds, 0 to 2147483647, for which a write of a node that crashed may still reach the database.
   * Documents loaded within that time after it are kept in memory to its end, and then stored once more, so
   * that such a write does not last. `0` turns this off. Default `5000`.
   */
  storeGrace?: number | null;
  /**
   * How a client is let in at the next owner when its document moves: `'token'`, it is asked for its token
   * and `onAuthenticate` runs there, as at a reconnect; `'session'`, with the context and the read-only of
   * its connection, which cross a link as the context of `handleConnection` does, so that neither
   * `onConnect` nor `onAuthenticate` runs: for tokens that are good once. After a crash, from Hocuspocus 3, and where the
   * context cannot cross, clients are asked for their tokens. Default `'token'`.
   */
  rehomeAuth?: 'token' | 'session' | null;
  /**
   * Whether documents that this node has open move when a node joins or a weight changes: `'gradual'`, they are
   * handed over, `migrationConcurrency` at a time; `'off'`, they stay as long as they are open, with all who
   * open them meanwhile, and are opened where they belong after that. A node that leaves, drains or is removed
   * hands over in any case, and so does a pin, or one that is taken away. Set it alike on all nodes. Anything
   * else is an error. Default `'gradual'`.
   */
  rebalance?: 'gradual' | 'off' | null;
  /**
   * Chooses nodes in place of the ring. The node that owns a document by the ring calls it, and its
   * answer counts for all. It must be synchronous: an async function is an error. `null`, a node
   * that is no member, a promise or a throw mean the ring; the last three are logged once. A pin
   * (`migrateDocument`) comes before it: it is not called for a document whose pin holds.
   * Default: the ring.
   */
  customRoutingFunction?: CustomRoutingFunction | null;
  /** Writes debug messages to `logger`. Default `false`. */
  debugMode?: boolean | null;
  /**
   * Points on the ring per unit of weight, 1 to 10000. More spread documents more evenly and cost
   * memory. All nodes need the same number; one that differs is refused. Default `150`.
   */
  virtualNodes?: number | null;
  /**
   * Name of the cluster; nodes of clusters with other names are refused. 1 to 128 bytes in UTF-8,
   * no control characters. Default `'hocuspocus'`.
   */
  clusterName?: string | null;
  /**
   * What the nodes authenticate each other with; the same on all of them. A string of at least 16
   * characters, or at least 16 bytes; make it of 32 random ones (`openssl rand -base64 32`), because
   * guesses can be tried against a recorded handshake. An array of 1 to 4 of them while one takes the
   * place of another: all are accepted, and two nodes use the first of the acceptor's that both know;
   * `ERR_SMARTROUTE_OPTION` if one stands there twice. Default: the environment variable
   * `SMARTROUTE_CLUSTER_SECRET`, where it is not empty, split at its commas (a secret with a comma goes
   * into this option); otherwise none, and then only loopback addresses are accepted: with any other
   * `listen()` rejects with `ERR_SMARTROUTE_NO_SECRET`. With `redis`, the first node that starts without
   * a secret makes one and keeps it there.
   */
  clusterSecret?: string | Uint8Array | readonly (string | Uint8Array)[] | null;
  /**
   * The Redis that keeps the member list, so that nodes join by themselves and no document is ever
   * open on two of them: a URL (`redis://user:password@host:6379/0`, `rediss://` for TLS), an object,
   * or an ioredis client whose options are read; the client itself is not used. Default: that of an
   * `@hocuspocus/extension-redis` in the same server; without one, `clusterNodes` is the list.
   */
  redis?: string | RedisConfiguration | RedisClientLike | null;
  /**
   * What the keys in Redis begin with, in braces. Clusters with different prefixes share a Redis
   * without knowing of each other; all nodes of one cluster need the same. 1 to 128 bytes in UTF-8,
   * no control characters. Default: the `prefix` of the extension-redis that `redis` comes from,
   * otherwise `'hocuspocus'`.
   */
  redisPrefix?: string | null;
  /**
   * A port of its own for links and for the other nodes' health checks, 0 to 65535, where `0` means
   * any that is free. The public port then refuses both. A port that cannot be listened on is
   * `ERR_SMARTROUTE_LINK_PORT`. Default: links come in at the server's own port.
   */
  linkPort?: number | null;
  /**
   * Host name or IP address that `linkPort` listens on; an error without `linkPort`. Default: the
   * unspecified address, which is every address of the machine.
   */
  linkHost?: string | null;
  /**
   * Opens links to other nodes over TLS with these options of `tls.connect()`; `{}` means TLS with
   * its usual options. Default: plain TCP.
   */
  linkTls?: ConnectionOptions | null;
  /**
   * Mutual TLS (1.3) between the nodes: links, and the health checks of the other nodes, are encrypted, and
   * both sides show a certificate that `ca` has signed. Needs a `linkPort`, also in `clusterNodes`, and is for
   * all nodes or none: a node without it is refused, and both say why. `ERR_SMARTROUTE_OPTION` without
   * `linkPort`, beside `linkTls`, or if OpenSSL cannot read what is given. Default: links are authenticated, but not encrypted.
   */
  clusterTls?: ClusterTls | null;
  /**
   * Which proxies in front of this node are believed when they say in `X-Forwarded-For` whose request
   * it is: `true` all, `false` none, a number so many of them counted from this node, or an array of
   * addresses, networks (`'10.0.0.0/8'`), `'loopback'`, `'linklocal'` and `'uniquelocal'`. Hooks at the
   * owner then see the client's address as `request.remoteAddress` and in the header `X-Real-IP`, which
   * extension-throttle reads; what a client writes there itself is replaced. Default: requests are
   * passed on as they come, with the address of the socket.
   */
  trustProxy?: boolean | number | readonly string[] | null;
  /**
   * Turns the context given to `handleConnection` into text that can cross a link. Synchronous.
   * Needs `deserializeContext` on every node. Default: plain data crosses by itself, and anything
   * else is `ERR_SMARTROUTE_CONTEXT`.
   */
  serializeContext?: ((context: any) => string) | null;
  /** Turns that text back into the context, on the owner. Synchronous. Needs `serializeContext`. */
  deserializeContext?: ((text: string) => any) | null;
  /**
   * Port of the management API, the metrics, the probes and the dashboard: 0 to 65535, where `0` means any
   * that is free, or `false` for none. A port that is in use is a warning, and the node goes on without;
   * when the application itself listens on it later, SmartRoute lets it have the port. Default `8080`.
   */
  managementPort?: number | false | null;
  /**
   * Host name or IP address that `managementPort` listens on. Anything that is not loopback needs
   * `managementToken`. Default `'127.0.0.1'`.
   */
  managementHost?: string | null;
  /**
   * What requests to the management API and for metrics have to bring (`Authorization: Bearer …`): 16 to
   * 1024 printable ASCII characters without spaces. Default: the environment variable
   * `SMARTROUTE_MANAGEMENT_TOKEN`, where it is not empty; otherwise none, and then only requests that name
   * this machine by a loopback name are answered.
   */
  managementToken?: string | null;
  /**
   * A port of its own for `/health` and `/ready`, and nothing else, 0 to 65535: for a kubelet that knocks
   * at the pod's address. They are answered at `managementPort` as well. Default: only there.
   */
  probePort?: number | null;
  /**
   * Host name or IP address that `probePort` listens on; an error without `probePort`. Default: the
   * unspecified address, which is every address of the machine.
   */
  probeHost?: string | null;
  /** Where messages go. Default: the console. */
  logger?: Logger | null;
}

/** A {@link ClusterNode} after validation. */
export interface ResolvedClusterNode {
  readonly id: string;
  readonly address: string;
  readonly port: number;
  readonly weight: number;
  readonly linkPort: number | undefined;
}

/** A password or token after validation: prints as `[redacted]`. */
export interface RedactedText {
  expose(): string;
}

/** {@link RedisTls} after validation. */
export interface ResolvedRedisTls {
  readonly ca: readonly string[] | undefined;
  readonly cert: string | undefined;
  readonly key: RedactedText | undefined;
  readonly servername: string | undefined;
  readonly rejectUnauthorized: boolean;
}

/** The option `clusterTls` after validation. */
export interface ResolvedClusterTls {
  readonly ca: readonly string[];
  readonly cert: string;
  readonly key: RedactedText;
  readonly passphrase: RedactedText | undefined;
}

/** The option `redis` after validation, whatever it was made of. */
export interface ResolvedRedis {
  readonly topology:
    | { readonly kind: 'standalone'; readonly server: { readonly host: string; readonly port: number } }
    | { readonly kind: 'socket'; readonly path: string }
    | {
        readonly kind: 'sentinel';
        readonly sentinels: readonly { readonly host: string; readonly port: number }[];
        readonly name: string;
        readonly username: string | undefined;
        readonly password: RedactedText | undefined;
        readonly tls: ResolvedRedisTls | undefined;
        readonly nat: readonly object[];
      }
    | {
        readonly kind: 'cluster';
        readonly nodes: readonly { readonly host: string; readonly port: number }[];
        readonly nat: readonly object[];
      };
  readonly username: string | undefined;
  readonly password: RedactedText | undefined;
  readonly db: number;
  readonly tls: ResolvedRedisTls | undefined;
}

/** The options as they apply: complete, validated, frozen. */
export interface ResolvedConfiguration {
  /** `undefined` where it is decided at start; {@link SmartRoute.nodeId} has it then. */
  readonly nodeId: string | undefined;
  /** Without brackets. */
  readonly nodeAddress: string;
  /** `undefined` where it is the port the server listens on. */
  readonly nodePort: number | undefined;
  readonly nodeWeight: number;
  /** Without the own entry, if `nodeId` was set. */
  readonly clusterNodes: readonly ResolvedClusterNode[];
  readonly enforceRouting: boolean;
  /** `true` exactly where `misroute` is `'redirect'`. */
  readonly redirectOnMisroute: boolean;
  /** The same as `misroute`. */
  readonly onMisroute: MisrouteMode;
  /** What `onMisroute` and `redirectOnMisroute` come to. */
  readonly misroute: MisrouteMode;
  /** Normalised: always with a path. `undefined` where clients are not sent to this node. */
  readonly publicUrl: string | undefined;
  readonly healthCheck: {
    readonly interval: number;
    readonly timeout: number;
    readonly retries: number;
    readonly backoffMultiplier: number;
    readonly maxBackoff: number;
    readonly path: string;
  };
  readonly leaseDuration: number;
  readonly stallTimeout: number;
  readonly syncInterval: number;
  readonly migrationTimeout: number;
  readonly migrationConcurrency: number;
  readonly drainTimeout: number;
  readonly storeGrace: number;
  readonly rehomeAuth: 'token' | 'session';
  readonly rebalance: 'gradual' | 'off';
  readonly customRoutingFunction: CustomRoutingFunction | undefined;
  readonly debugMode: boolean;
  readonly virtualNodes: number;
  readonly clusterName: string;
  /** Each prints as `[redacted]`, in JSON too. */
  readonly clusterSecret: readonly Buffer[] | undefined;
  /** `undefined` where it comes from an extension-redis, or there is none. */
  readonly redis: ResolvedRedis | undefined;
  readonly redisPrefix: string | undefined;
  readonly linkPort: number | undefined;
  readonly linkHost: string | undefined;
  readonly linkTls: Readonly<ConnectionOptions> | undefined;
  readonly clusterTls: ResolvedClusterTls | undefined;
  /** Whether a proxy at an address, so many hops from this node, is believed; `undefined` where it is not set. */
  readonly trustProxy: ((address: string, hop: number) => boolean) | undefined;
  readonly serializeContext: ((context: any) => string) | undefined;
  readonly deserializeContext: ((text: string) => any) | undefined;
  readonly managementPort: number | false;
  readonly managementHost: string;
  readonly managementToken: RedactedText | undefined;
  readonly probePort: number | undefined;
  readonly probeHost: string | undefined;
  readonly logger: Logger | undefined;
}

/** A member of the cluster. */
export interface NodeInfo {
  readonly id: string;
  readonly address: string;
  /** The port it advertises. */
  readonly port: number;
  readonly weight: number;
}

/** A member of the cluster with its health as this node sees it. */
export interface NodeStats extends NodeInfo {
  /**
   * By the health checks; until one has passed or enough have failed, by whether the link to the node
   * is open. One node's opinion: it moves no documents. A node is always healthy to itself.
   */
  readonly isHealthy: boolean;
  /** When its last health check ended; `null` before the first, and always for the node itself. */
  readonly lastHealthCheck: Date | null;
}

/** What {@link SmartRoute.getRouteStats} answers: a snapshot that does not change later. */
export interface RouteStats {
  /** Members of the cluster, this node included. */
  readonly totalNodes: number;
  /** How many of them are healthy as this node sees it. */
  readonly healthyNodes: number;
  /** The others. */
  readonly unhealthyNodes: number;
  /** Size of {@link SmartRoute.getDocumentRoutes}. */
  readonly totalDocuments: number;
  /** Documents that are moving to or from this node right now. */
  readonly migrating: number;
  /** Every member, sorted by id. */
  readonly nodes: readonly NodeStats[];
}

/** What {@link SmartRoute.getFrameCounts} answers. */
export interface FrameCounts {
  /** Frames of clients that stayed on this node. */
  readonly local: number;
  /** Frames of clients that were carried to another node. */
  readonly proxied: number;
}

/** One link with its counters, each since this link was made. */
export interface LinkStats {
  /** Number of the link in this process. */
  readonly link: number;
  /** Id of the node at the other end. */
  readonly node: string;
  /** `true`: the other node opened it, its clients' frames come in on it. `false`: this node did. */
  readonly accepted: boolean;
  /** Whether it is open. One that this node opens stays in the list while it is closed. */
  readonly up: boolean;
  /** Milliseconds since anything was heard on it; `null` before the first time. */
  readonly heardAgo: number | null;
  /** Round trip of the last ping in microseconds; `0` before the first. */
  readonly rtt: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  /** Frames of the link from the other node. */
  readonly framesIn: number;
  /** Messages handed over for the other node; a long one crosses in several frames. */
  readonly framesOut: number;
  /** Streams open on it: one per client socket and owner. */
  readonly streams: number;
  /** Bytes that wait to be sent. */
  readonly backlog: number;
  /** How many times a stream had to wait because its reader was slow. */
  readonly stalls: number;
}

/** What {@link SmartRoute.call} takes. */
export interface CallOptions {
  /** Milliseconds until the call is given up, from 1. Default `10000`. */
  timeout?: number | null;
  /**
   * `true`: reject with `ERR_SMARTROUTE_NOT_OPEN` where the document is not open. Default `false`. A call
   * by itself loads no document.
   */
  onlyIfOpen?: boolean | null;
}

/** How long to wait for other nodes. */
export interface WaitOptions {
  /** Milliseconds, from 1. */
  timeout?: number | null;
}

/** Figures of one node; all of them `null` where it has never been heard. */
export interface NodeFigures {
  readonly id: string;
  /**
   * Milliseconds since it was asked for these figures; `0` for this node. Grows while a node does not
   * answer; `null` where it never has.
   */
  readonly age: number | null;
  /** Documents open on it. */
  readonly documents: number | null;
  /** Clients' sockets that reach the cluster at this node and have a document open, wherever that is. */
  readonly connections: number | null;
  /** Direct connections to documents that are open on it. */
  readonly directConnections: number | null;
  /** Client sockets of other nodes with documents that are open on it: one per socket. */
  readonly streams: number | null;
  /** Documents that move away from it, or wait for that; `null` also of a node with an earlier version. */
  readonly migrating: number | null;
  /** Moves of documents away from it that have been completed or have failed since it started. */
  readonly migrated: number | null;
}

/** What {@link SmartRoute.getClusterMigrations} answers. */
export interface ClusterMigrations {
  /** Newest first. Those that wait for others are not among them. */
  readonly migrations: readonly Migration[];
  /** Ids of nodes that did not answer in time. */
  readonly missing: readonly string[];
}

/** What {@link SmartRoute.getClusterStats} answers. */
export interface ClusterStats {
  /** Sum over the nodes, by their last figures. */
  readonly documents: number;
  /** Clients' sockets and direct connections, summed over the nodes by their last figures. */
  readonly connections: number;
  /** Every member of the cluster. */
  readonly nodes: readonly NodeFigures[];
}

/** What {@link SmartRoute.closeConnections} answers. */
export interface ClosedConnections {
  /** Connections that were closed: one per client and document. */
  readonly closed: number;
  /** Ids of nodes that did not say in time that they have. */
  readonly missing: readonly string[];
}

/** What a document's owner tells about it. */
export interface DocumentInfo {
  readonly documentName: string;
  /** Id of the node that answered: the owner. */
  readonly owner: string;
  /** `'changed'`: open, and being stored or soon to be. */
  readonly state: 'closed' | 'loading' | 'open' | 'changed' | 'unloading';
  /**
   * Size of its state as a Yjs update; `null` where it is not open. Of a document that changes it may be out of date, by a
   * hundred times what it takes to write the document.
   */
  readonly bytes: number | null;
  /** Connections by the id of the node that the clients reached. */
  readonly connections: Readonly<Record<string, number>>;
  readonly directConnections: number;
  /** `null` where it has not been changed since it was loaded. */
  readonly lastChange: Date | null;
}

/** An entry of {@link SmartRoute.getDocumentRoutes}. */
export type DocumentRoute = readonly [documentId: string, nodeId: string];

/** Something an operator should know and that stops nothing. Also written to the logger. */
export interface SmartRouteWarning {
  /** Stable across releases, unlike `message`. */
  readonly code: `WARN_SMARTROUTE_${string}`;
  readonly message: string;
}

/** Arguments of the listeners, by event. */
/** A document that moves, or has moved, from this node to another. */
export interface Migration {
  readonly documentId: string;
  readonly from: string;
  readonly to: string;
  /** Epoch of the view that gives it to the other node. */
  readonly epoch: number;
  /**
   * `preparing`: it is stored. `transferring`: its state is sent, and the other node loads it, while it is served
   * here. `sealed`: nothing more is let in. `releasing`: a store ends here.
   */
  readonly state: 'queued' | 'preparing' | 'transferring' | 'sealed' | 'releasing' | 'completed' | 'failed';
  readonly startedAt: Date;
  readonly endedAt: Date | null;
  /** Of its state, as sent. */
  readonly bytes: number;
  /** Of clients, that came while it moved. */
  readonly framesReplayed: number;
  /** Why it has not moved. */
  readonly reason: string | null;
}

/** What came of `drain`. */
export interface DrainResult {
  /** Documents that other nodes have taken. */
  readonly moved: number;
  /** Names of those that were stored instead. */
  readonly stored: string[];
}

export interface SmartRouteEvents {
  /**
   * Another member list applies. `epoch` only grows; with Redis it is the same at every node, without
   * it counts this node's own lists. `nodes` may own documents. `joined`, `left` and `changed` (address,
   * port, weight or state) are the difference to the list before, of all members.
   */
  viewChanged: [
    view: {
      readonly epoch: number;
      readonly nodes: readonly NodeInfo[];
      readonly joined: readonly NodeInfo[];
      readonly left: readonly NodeInfo[];
      readonly changed: readonly NodeInfo[];
    },
  ];
  /** The link to a node is open and authenticated. */
  linkUp: [link: { readonly nodeId: string }];
  /** The link to a node is closed. It is opened again without further doing. */
  linkDown: [link: { readonly nodeId: string; readonly reason: string }];
  /**
   * A node failed its health check `healthCheck.retries` times in a row, or said that its JavaScript
   * stands still: it is unhealthy as this node sees it. Or it was taken out of the cluster before that,
   * without having left. `reason` is that of the last check, for people.
   */
  nodeFailed: [failure: { readonly node: NodeInfo; readonly reason: string }];
  /** An unhealthy node passed a health check, or one that was taken out is a member again. */
  nodeRecovered: [recovery: { readonly node: NodeInfo }];
  /**
   * A health check of another node ended. `latency` is in milliseconds, from before the connection
   * was opened; `reason` is there if the check did not pass. `nodeFailed` and `nodeRecovered` follow it.
   */
  healthCheckResult: [
    check: { readonly node: NodeInfo; readonly healthy: boolean; readonly latency: number; readonly reason?: string },
  ];
  /** This node is in another {@link EnforcementMode} from now on. Only with an extension-redis beside it. */
  enforcementChanged: [change: { readonly mode: EnforcementMode }];
  /** A document begins to move away from this node. */
  migrationStarted: [move: { readonly documentId: string; readonly from: string; readonly to: string; readonly epoch: number }];
  /** It has moved. `bytes` of state were sent, it took `duration` ms, `framesReplayed` frames of clients came meanwhile. */
  migrationCompleted: [
    move: {
      readonly documentId: string;
      readonly from: string;
      readonly to: string;
      readonly epoch: number;
      readonly bytes: number;
      readonly duration: number;
      readonly framesReplayed: number;
    },
  ];
  /** It has not moved (yet): `reason` says why, `next` what happens now. It is served where it was. */
  migrationFailed: [
    move: {
      readonly documentId: string;
      readonly from: string;
      readonly to: string;
      readonly epoch: number;
      readonly reason: string;
      readonly next: string;
    },
  ];
  /** See {@link SmartRouteWarning}. */
  warning: [warning: SmartRouteWarning];
}

/**
 * Stable codes of {@link SmartRouteError}.
 *
 * | code | when | what changed |
 * |---|---|---|
 * | `ERR_SMARTROUTE_OPTION` | an option's value or name is not allowed; `option` names it | nothing |
 * | `ERR_SMARTROUTE_NO_BINARY` | the package has no native binary for this platform | nothing |
 * | `ERR_SMARTROUTE_NO_SECRET` | a cluster beyond loopback has no `clusterSecret` | nothing |
 * | `ERR_SMARTROUTE_NOT_IMPLEMENTED` | this version does not have the feature | nothing |
 * | `ERR_SMARTROUTE_UNKNOWN_NODE` | an id that no member of the cluster has | nothing |
 * | `ERR_SMARTROUTE_DESTROYED` | called after `destroy()`, or cut short by it | nothing if called after; otherwise it may have taken effect on other nodes |
 * | `ERR_SMARTROUTE_NOT_STARTED` | the call needs a node that listens | nothing |
 * | `ERR_SMARTROUTE_CONTEXT` | a part of a connection's context cannot cross a link | that document is not opened, the socket's others stay |
 * | `ERR_SMARTROUTE_ID_TAKEN` | `listen()`: a node that runs has the same `nodeId` | the port is closed again, the other node is untouched |
 * | `ERR_SMARTROUTE_STORE` | `resync()`: Redis did not answer; the message says why | nothing |
 * | `ERR_SMARTROUTE_LINK_PORT` | `linkPort` cannot be listened on; `cause` says why | the node has not joined |
 * | `ERR_SMARTROUTE_PAYLOAD` | a payload or an answer cannot be cloned, or is longer than 16 MiB | nothing for a payload; for an answer the handler has run |
 * | `ERR_SMARTROUTE_TIMEOUT` | no answer came in time | what was asked for may have been done, may still be, or not |
 * | `ERR_SMARTROUTE_INTERRUPTED` | the node that was asked ended, or the link to it broke | what was asked for may have been done, or not |
 * | `ERR_SMARTROUTE_UNREACHABLE` | a node was not reached in time, or no node served the document | nothing |
 * | `ERR_SMARTROUTE_BUSY` | too many requests are under way to that node, or on it | nothing |
 * | `ERR_SMARTROUTE_NO_HANDLER` | the owner has no handler of that name | nothing |
 * | `ERR_SMARTROUTE_NOT_OPEN` | `onlyIfOpen`, and the document is not open | nothing |
 * | `ERR_SMARTROUTE_NOT_OWNER` | a document was to be loaded on a node that does not own it | it is not loaded |
 */
export type SmartRouteErrorCode =
  | 'ERR_SMARTROUTE_OPTION'
  | 'ERR_SMARTROUTE_NO_BINARY'
  | 'ERR_SMARTROUTE_NO_SECRET'
  | 'ERR_SMARTROUTE_NOT_IMPLEMENTED'
  | 'ERR_SMARTROUTE_UNKNOWN_NODE'
  | 'ERR_SMARTROUTE_DESTROYED'
  | 'ERR_SMARTROUTE_NOT_STARTED'
  | 'ERR_SMARTROUTE_CONTEXT'
  | 'ERR_SMARTROUTE_ID_TAKEN'
  | 'ERR_SMARTROUTE_UNHEALTHY'
  | 'ERR_SMARTROUTE_MOVING'
  | 'ERR_SMARTROUTE_PINS'
  | 'ERR_SMARTROUTE_STORE'
  | 'ERR_SMARTROUTE_LINK_PORT'
  | 'ERR_SMARTROUTE_PAYLOAD'
  | 'ERR_SMARTROUTE_TIMEOUT'
  | 'ERR_SMARTROUTE_INTERRUPTED'
  | 'ERR_SMARTROUTE_UNREACHABLE'
  | 'ERR_SMARTROUTE_BUSY'
  | 'ERR_SMARTROUTE_NO_HANDLER'
  | 'ERR_SMARTROUTE_NOT_OPEN'
  | 'ERR_SMARTROUTE_NOT_OWNER';

/** Every error this package throws or rejects with. Match on `code`, never on the message. */
export class SmartRouteError extends Error {
  constructor(code: SmartRouteErrorCode, message: string, details?: { option?: string; cause?: unknown });
  readonly name: 'SmartRouteError';
  readonly code: SmartRouteErrorCode;
  /** The option at fault, such as `'clusterNodes[1].port'`. */
  readonly option?: string;
  /** The error underneath, if there is one. */
  readonly cause?: unknown;
}

/**
 * The extension: opens each document on exactly one node of the cluster, whichever node a client
 * reaches.
 *
 * The methods work as soon as `onConfigure` has resolved. Configuring or destroying twice is fine.
 */
export class SmartRoute extends EventEmitter<SmartRouteEvents> implements Extension {
  /**
   * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION` for a wrong or unknown option,
   */
  constructor(configuration?: SmartRouteConfiguration | null);

  /** Above extension-redis, so that SmartRoute's hooks run before its. */
  priority: number;
  extensionName: string;

  /** Whether this node can own documents: true from joining the cluster until leaving it. */
  readonly isInitialized: boolean;
  /** The name of this node. `undefined` until the server listens, unless the option is set. */
  readonly nodeId: string | undefined;
  /** Where the management API listens; `null` where it does not. */
  readonly managementAddress: { readonly host: string; readonly port: number } | null;
  /** Where the listener of `probePort` listens; `null` where there is none. */
  readonly probeAddress: { readonly host: string; readonly port: number } | null;
  /** The options as they apply. */
  readonly configuration: ResolvedConfiguration;

  onConfigure(data: onConfigurePayload): Promise<void>;
  /** @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_LINK_PORT` if `linkPort` is taken */
  onListen(data: onListenPayload): Promise<void>;
  onUpgrade(data: onUpgradePayload): Promise<void>;
  onRequest(data: onRequestPayload): Promise<void>;
  onDestroy(data: onDestroyPayload): Promise<void>;

  /**
   * The node a document belongs to, as this node sees it; `null` while the cluster has no active
   * member.
   *
   * `customRoutingFunction` is called here, on this node. What counts is its answer on the node that
   * owns the document by the ring, so the two differ if the functions differ between nodes.
   */
  getDocumentTargetNode(documentId: string): NodeInfo | null;

  /** Whether {@link getDocumentTargetNode} is this node. Always true with `enforceRouting: false`. */
  shouldHandleDocument(documentId: string): boolean;

  /**
   * A fencing token: the epoch of the view under which this node loaded a document, or last kept one that was
   * to move. With Redis a later owner's is higher than that of any earlier one, so a database that keeps the
   * highest it has seen can refuse the late write of a node that crashed. Without Redis epochs are each
   * node's own count, and say nothing to others. `customRoutingFunction` moves documents within a view: do not
   * fence where its answers change while the members do not.
   *
   * @returns `null` for a document that is not in memory here, and where routing is not enforced
   */
  epochOf(documentName: string): number | null;

  /** Members, their health and the number of documents, as this node sees them now. */
  getRouteStats(): RouteStats;

  /** The members that are healthy as this node sees it, itself included, sorted by id. */
  getHealthyNodes(): NodeInfo[];

  /**
   * Where documents are: name to node id, for those that are open here or that clients of this node
   * reach through it. A copy; documents that only other nodes have to do with are not in it.
   */
  getDocumentRoutes(): Map<string, string>;

  /** Frames of this node's clients since the start, by where they went. A copy. */
  getFrameCounts(): FrameCounts;

  /** The links of this node; none before `onConfigure` and after {@link destroy}. A copy. */
  getLinkStats(): LinkStats[];

  /**
   * Adds a node, or replaces what is known of the node with that id. Every node of the cluster dials
   * it from then on, until it leaves by itself; it is a member once it answers, so the promise does
   * not wait for that. Before `onConfigure` this edits the list in `clusterNodes`.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_OPTION`, `ERR_SMARTROUTE_NO_SECRET` or
   *   `ERR_SMARTROUTE_DESTROYED`
   */
  addClusterNode(node: ClusterNode): Promise<void>;

  /**
   * Removes a node, everywhere, and keeps it out until it is restarted or added again. Resolves when
   * this node has dropped it. Before `onConfigure` this edits the list in `clusterNodes`.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_UNKNOWN_NODE` or
   *   `ERR_SMARTROUTE_DESTROYED`
   */
  removeClusterNode(nodeId: string): Promise<void>;

  /**
   * Puts a node out of the cluster without a handover: for one that hangs. It stays out until it is
   * restarted (for a day at least), and what it had not stored is lost with it. Resolves when this node
   * has dropped it: with Redis when its lease has lapsed, or it has said that it stopped.
   *
   * `force` (default `false`) does not wait for the lease. The node may then serve and store its
   * documents beside their new owners until it learns of this, `leaseDuration` at most: two copies of a
   * document, and a store that overwrites another (the exception of G1). Use it on a process that you
   * know to be dead or stopped. Without Redis there is no lease to wait for: it is always so, and a node
   * that runs on learns of it by its links.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_UNKNOWN_NODE`, `ERR_SMARTROUTE_DESTROYED`, or
   *   `ERR_SMARTROUTE_OPTION` where it is this node itself
   */
  evictNode(nodeId: string, options?: { force?: boolean }): Promise<void>;

  /**
   * Pins a document to a node, and resolves when that node serves it. Clients keep their sockets. The pin
   * lasts until `unpinDocument`; with Redis also while no node runs, without it as long as any node of
   * the cluster does. While the node is away the ring decides. A document that nobody has open can be
   * pinned as well. At most 4,096 pins.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_UNKNOWN_NODE`; `ERR_SMARTROUTE_UNHEALTHY` where
   *   the node is leaving or does not answer; `ERR_SMARTROUTE_MOVING` where another call moves it
   *   elsewhere; `ERR_SMARTROUTE_PINS`; `ERR_SMARTROUTE_TIMEOUT` after `migrationTimeout`: it is served
   *   where it was, and the move is tried again
   */
  migrateDocument(documentId: string, targetNodeId: string): Promise<void>;

  /** Lets the ring decide where a document is; resolves when this node knows so. Without a pin it does nothing. */
  unpinDocument(documentId: string): Promise<void>;

  /** Documents that move away from this node, the newest of the last 100 that have moved or failed after them. */
  getMigrations(): Migration[];

  /**
   * Hands all documents to the other nodes, then closes this node's sockets with a code that providers
   * retry. What no node takes within `drainTimeout` is stored. Part of `server.destroy()`, and so of
   * SIGTERM, SIGINT and SIGQUIT. This node takes nothing any more afterwards: end it. A second call
   * answers the same promise.
   */
  drain(): Promise<DrainResult>;

  /** Whether this node enforces routing at the moment. */
  readonly enforcement: EnforcementMode;

  /**
   * Turns the enforcement of routing off, or on again, on all nodes of the cluster, those that start
   * later included; kept in Redis. Needs an extension-redis on every node, which synchronises the copies
   * of documents meanwhile: at no time are there two that are not. Nodes with `enforceRouting: false`
   * stay as they are. Resolves when all nodes have followed; turning it on closes clients' sockets with
   * 1012 once.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_NOT_IMPLEMENTED` without extension-redis,
   *   `ERR_SMARTROUTE_OPTION` for anything but true or false, or `ERR_SMARTROUTE_DESTROYED`
   */
  setEnforcement(enforced: boolean): Promise<void>;

  /**
   * Has this node answer calls of a name. Do it on every node, before `listen()`. `handler` runs on the
   * node that owns the document, one that is not open included: it loads none. What it answers is
   * cloned; of what it throws the caller gets `name`, `message` and `code`.
   *
   * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION`, also where the name has a handler already
   */
  handle<Payload = any, Result = unknown>(
    name: string,
    handler: (documentName: string, payload: Payload) => Result | Promise<Result>,
  ): void;

  /**
   * Calls the handler of a name on the node that owns the document, with a structured clone of
   * `payload`, and follows the document where it moves. The handler runs once, or the error says whether
   * it may have: a call is never repeated for you once it was sent.
   *
   * @throws {SmartRouteError} rejects with what the handler threw, or with `ERR_SMARTROUTE_NO_HANDLER`,
   *   `ERR_SMARTROUTE_NOT_OPEN`, `ERR_SMARTROUTE_UNREACHABLE` or `ERR_SMARTROUTE_BUSY` (it has not run),
   *   `ERR_SMARTROUTE_TIMEOUT` or `ERR_SMARTROUTE_INTERRUPTED` (it may have), `ERR_SMARTROUTE_PAYLOAD`,
   *   `ERR_SMARTROUTE_OPTION`, `ERR_SMARTROUTE_NOT_STARTED` or `ERR_SMARTROUTE_DESTROYED`
   */
  call<Result = any>(documentName: string, name: string, payload?: unknown, options?: CallOptions | null): Promise<Result>;

  /**
   * What the owner of a document tells about it; loads nothing. Measuring `bytes` costs the owner one
   * encoding of the document. `timeout` is `10000` by default. Rejects as {@link call} does.
   */
  getDocumentInfo(documentName: string, options?: WaitOptions | null): Promise<DocumentInfo>;

  /**
   * Sends a stateless message to all clients of a document, whichever nodes they reached. Resolves with
   * the number of connections that it was sent on; `0` where the document is not open. `timeout` is
   * `10000` by default. Rejects as {@link call} does.
   */
  broadcastStateless(documentName: string, payload: string, options?: WaitOptions | null): Promise<number>;

  /**
   * As `hocuspocus.closeConnections`, on every node of the cluster. Does not wait longer than `timeout`,
   * `2000` by default: `missing` names the nodes that did not answer.
   */
  closeConnections(documentName?: string | null, options?: WaitOptions | null): Promise<ClosedConnections>;

  /**
   * Figures of every member, asked for now. Does not wait longer than `timeout`, `2000` by default: of a
   * node that does not answer, the last figures are given, with their age.
   */
  getClusterStats(options?: WaitOptions | null): Promise<ClusterStats>;

  /**
   * Moves of documents away from any node of the cluster, asked for now: of each node at most 25, those under
   * way before those that have ended. Does not wait longer than `timeout`, `2000` by default.
   */
  getClusterMigrations(options?: WaitOptions | null): Promise<ClusterMigrations>;

  /** Documents open in the whole cluster: `documents` of {@link getClusterStats}. */
  getDocumentsCount(options?: WaitOptions | null): Promise<number>;

  /** Clients and direct connections of the whole cluster: `connections` of {@link getClusterStats}. */
  getConnectionsCount(options?: WaitOptions | null): Promise<number>;

  /**
   * For servers that do not run Hocuspocus' own `Server`: give every HTTP upgrade to this first.
   * `true` means that it was another node's link and the socket is taken; `false` means that it is
   * yours, untouched.
   */
  handleUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean;

  /**
   * For servers that do not run Hocuspocus' own `Server`: give every plain HTTP request to this first,
   * before any body is read. `true` means that it was for SmartRoute (a health check of another node)
   * and is answered; `false` means that it is yours, untouched. With `linkPort` set, SmartRoute
   * answers checks there by itself.
   */
  handleRequest(request: IncomingMessage, response: ServerResponse): boolean;

  /**
   * The management API and `/metrics` for the application's own server, as a middleware in the shape of
   * Express and Connect; a plain `http` server may leave `next` out. It answers what begins with
   * `/api/routes/`, and `/metrics`, below the path where it is mounted; requests have to bring the token.
   *
   * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION` without `managementToken`
   */
  middleware(): (request: IncomingMessage, response: ServerResponse, next?: (error?: unknown) => void) => void;

  /**
   * Compares the member list with that in Redis now. Without Redis there is nothing to do: the nodes
   * compare their lists every second.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_STORE`, `ERR_SMARTROUTE_NOT_STARTED` or
   *   `ERR_SMARTROUTE_DESTROYED`
   */
  resync(): Promise<{ readonly epoch: number; readonly with: 'redis' | 'peers' }>;

  /** Leaves the cluster and closes every link. Resolves when all of it is closed. */
  destroy(): Promise<void>;
}
