import { EventEmitter } from 'node:events';
import type { IncomingMessage } from 'node:http';
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
}

/**
 * What the node a client reached does with a document that another node owns:
 * `'proxy'` carries the traffic to the owner, `'redirect'` sends the client there where it can and
 * carries the traffic where it cannot, `'reject'` refuses the document.
 */
export type MisrouteMode = 'proxy' | 'redirect' | 'reject';

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

/** When a node counts as unreachable. Whatever is left out keeps its default. */
export interface HealthCheck {
  /** Milliseconds between two checks of a healthy node, from 1. Default `5000`. */
  interval?: number | null;
  /**
   * Milliseconds after which an unanswered check has failed, from 1. Default `3000`. It may be
   * longer than `interval`.
   */
  timeout?: number | null;
  /**
   * Number of failed checks in a row that make a node unhealthy: 1 to 1000, where 1 means the first
   * failure. `0` is an error, because it could mean either "at once" or "never". Default `3`.
   */
  retries?: number | null;
  /** Each failure multiplies the wait before the next check by this, from 1. Default `2`. */
  backoffMultiplier?: number | null;
  /** Longest wait between two checks in milliseconds, from 1. Default `30000`. */
  maxBackoff?: number | null;
}

/** Where SmartRoute writes. `console` fits, and so do the usual logging libraries. */
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
   * The other nodes. An entry with the own `nodeId` is ignored, so every node can be given the same
   * list; the same id twice is an error that names both places. Default `[]`: a node of its own.
   */
  clusterNodes?: readonly ClusterNode[] | null;
  /** `false` serves every document on the node the client reached. Default `true`. */
  enforceRouting?: boolean | null;
  /**
   * `true` is another way to write `onMisroute: 'redirect'`. A contradiction between the two is an
   * error. Default: whatever `onMisroute` says, and that is `false` by default.
   */
  redirectOnMisroute?: boolean | null;
  /** What happens to documents that another node owns; see {@link MisrouteMode}. Default `'proxy'`. */
  onMisroute?: MisrouteMode | null;
  /** How the other nodes' health is checked. Default: each field's own. */
  healthCheck?: HealthCheck | null;
  /**
   * Milliseconds between two full comparisons of the member list, 1 to 2147483647. Changes are
   * passed on at once; this repairs what was missed. `0` is an error. Default `30000`.
   */
  syncInterval?: number | null;
  /**
   * Milliseconds one document's move may take, 1 to 2147483647; also how long frames wait for an
   * owner that cannot be reached. A document whose move times out stays where it is. `0` is an
   * error. Default `60000`.
   */
  migrationTimeout?: number | null;
  /**
   * Chooses nodes in place of the ring. The node that owns a document by the ring calls it, and its
   * answer counts for all. It must be synchronous: an async function is an error. `null`, a node
   * that is no member, a promise or a throw mean the ring; the last three are logged once.
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
   * characters, or at least 16 bytes. Default: the environment variable
   * `SMARTROUTE_CLUSTER_SECRET`, where it is not empty; otherwise none, and then only loopback
   * addresses are accepted: any other makes the constructor throw `ERR_SMARTROUTE_NO_SECRET`.
   */
  clusterSecret?: string | Uint8Array | null;
  /**
   * A port of its own for links and for the other nodes' health checks, 0 to 65535, where `0` means
   * any that is free. The public port then refuses links. A port that cannot be listened on is
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
   * Turns the context given to `handleConnection` into text that can cross a link. Synchronous.
   * Needs `deserializeContext` on every node. Default: plain data crosses by itself, and anything
   * else is `ERR_SMARTROUTE_CONTEXT`.
   */
  serializeContext?: ((context: any) => string) | null;
  /** Turns that text back into the context, on the owner. Synchronous. Needs `serializeContext`. */
  deserializeContext?: ((text: string) => any) | null;
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
  readonly healthCheck: {
    readonly interval: number;
    readonly timeout: number;
    readonly retries: number;
    readonly backoffMultiplier: number;
    readonly maxBackoff: number;
  };
  readonly syncInterval: number;
  readonly migrationTimeout: number;
  readonly customRoutingFunction: CustomRoutingFunction | undefined;
  readonly debugMode: boolean;
  readonly virtualNodes: number;
  readonly clusterName: string;
  /** Prints as `[redacted]`, in JSON too. */
  readonly clusterSecret: Buffer | undefined;
  readonly linkPort: number | undefined;
  readonly linkHost: string | undefined;
  readonly linkTls: Readonly<ConnectionOptions> | undefined;
  readonly serializeContext: ((context: any) => string) | undefined;
  readonly deserializeContext: ((text: string) => any) | undefined;
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
  /** One node's opinion: it moves no documents. A node is always healthy to itself. */
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

/** An entry of {@link SmartRoute.getDocumentRoutes}. */
export type DocumentRoute = readonly [documentId: string, nodeId: string];

/** Something an operator should know and that stops nothing. Also written to the logger. */
export interface SmartRouteWarning {
  /** Stable across releases, unlike `message`. */
  readonly code: `WARN_SMARTROUTE_${string}`;
  readonly message: string;
}

/** Arguments of the listeners, by event. */
export interface SmartRouteEvents {
  /** Another member list applies. `epoch` only grows. */
  viewChanged: [view: { readonly epoch: number; readonly nodes: readonly NodeInfo[] }];
  /** The link to a node is open and authenticated. */
  linkUp: [link: { readonly nodeId: string }];
  /** The link to a node is closed. It is opened again without further doing. */
  linkDown: [link: { readonly nodeId: string; readonly reason: string }];
  /** A node became unhealthy as this node sees it. */
  nodeFailed: [failure: { readonly node: NodeInfo; readonly reason: string }];
  /** A node is healthy again as this node sees it. */
  nodeRecovered: [recovery: { readonly node: NodeInfo }];
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
 * | `ERR_SMARTROUTE_LINK_PORT` | `linkPort` cannot be listened on; `cause` says why | the node has not joined |
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
  | 'ERR_SMARTROUTE_LINK_PORT';

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
   *   `ERR_SMARTROUTE_NO_SECRET` for a cluster beyond loopback without a secret
   */
  constructor(configuration?: SmartRouteConfiguration | null);

  /** Above extension-redis, so that SmartRoute's hooks run before its. */
  priority: number;
  extensionName: string;

  /** Whether this node can own documents: true from joining the cluster until leaving it. */
  readonly isInitialized: boolean;
  /** The name of this node. `undefined` until the server listens, unless the option is set. */
  readonly nodeId: string | undefined;
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

  /** Members, their health and the number of documents, as this node sees them now. */
  getRouteStats(): RouteStats;

  /** The members that are healthy as this node sees it, itself included, sorted by id. */
  getHealthyNodes(): NodeInfo[];

  /**
   * Where documents are: name to node id, for those that are open here or that clients of this node
   * reach through it. A copy; documents that only other nodes have to do with are not in it.
   */
  getDocumentRoutes(): Map<string, string>;

  /**
   * Adds a node, or replaces what is known of the node with that id. Before `onConfigure` it edits
   * the list in `clusterNodes` and resolves at once.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_OPTION`, `ERR_SMARTROUTE_NO_SECRET` or
   *   `ERR_SMARTROUTE_DESTROYED`
   */
  addClusterNode(node: ClusterNode): Promise<void>;

  /**
   * Removes a node. Before `onConfigure` it edits the list in `clusterNodes` and resolves at once.
   *
   * @throws {SmartRouteError} rejects with `ERR_SMARTROUTE_UNKNOWN_NODE` or
   *   `ERR_SMARTROUTE_DESTROYED`
   */
  removeClusterNode(nodeId: string): Promise<void>;

  /**
   * Moves a document to a node of your choice.
   *
   * @throws {SmartRouteError} always rejects with `ERR_SMARTROUTE_NOT_IMPLEMENTED` in this version
   */
  migrateDocument(documentId: string, targetNodeId: string): Promise<void>;

  /**
   * For servers that do not run Hocuspocus' own `Server`: give every HTTP upgrade to this first.
   * `true` means that it was another node's link and the socket is taken; `false` means that it is
   * yours, untouched.
   */
  handleUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean;

  /** Leaves the cluster and closes every link. Resolves when all of it is closed. */
  destroy(): Promise<void>;
}
