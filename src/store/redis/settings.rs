//! Which Redis, as the shim passes it. Validated and defaulted in `js/options.js`, and only there.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// How a node reaches its registry. Fixed for the node's life.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisSettings {
    /// Where Redis is.
    pub topology: Topology,
    /// ACL user; none means `default`.
    #[serde(default)]
    pub username: Option<String>,
    /// Password of that user.
    #[serde(default)]
    pub password: Option<Password>,
    /// Database number; a Cluster has only 0.
    #[serde(default)]
    pub db: u32,
    /// TLS to Redis; none means plain TCP.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// `redisPrefix`: what all keys of this cluster begin with, in braces.
    pub prefix: String,
    /// `healthCheck.timeout`, ms: how long connecting may take, and how long each command.
    pub timeout: u64,
    /// `healthCheck.maxBackoff`, ms: the longest pause between two attempts.
    pub max_backoff: u64,
}

impl RedisSettings {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }

    pub(super) fn max_backoff(&self) -> Duration {
        Duration::from_millis(self.max_backoff)
    }
}

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Topology {
    /// One server.
    Standalone {
        /// Its address.
        server: Endpoint,
    },
    /// One server of this machine, by its Unix socket.
    Socket {
        /// Path of the socket.
        path: String,
    },
    /// A master that sentinels name.
    #[serde(rename_all = "camelCase")]
    Sentinel {
        /// Sentinels to ask; others are learned from them. Never empty.
        sentinels: Vec<Endpoint>,
        /// What the sentinels call the master.
        name: String,
        /// ACL user at the sentinels.
        #[serde(default)]
        username: Option<String>,
        /// Password at the sentinels.
        #[serde(default)]
        password: Option<Password>,
        /// TLS to the sentinels.
        #[serde(default)]
        tls: Option<Tls>,
        /// Addresses that Redis announces, and where they are reached from here.
        #[serde(default)]
        nat: Vec<Nat>,
    },
    /// A Redis Cluster.
    Cluster {
        /// Some of its nodes; the others are learned from them. Never empty.
        nodes: Vec<Endpoint>,
        /// Addresses that Redis announces, and where they are reached from here.
        #[serde(default)]
        nat: Vec<Nat>,
    },
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Endpoint {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `host:port` as Redis writes it in MOVED, where an empty host means the one that spoke.
    pub(super) fn parse(text: &str, speaker: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { speaker } else { host };
        let host = host.trim_start_matches('[').trim_end_matches(']').into();
        let port = port.parse().ok()?;
        Some(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// One translation of an announced address.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Nat {
    /// What Redis announces.
    pub announced: Endpoint,
    /// Where that is from here.
    pub reached: Endpoint,
}

/// How TLS is spoken, as `tls.connect()` spells it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Trusted certificates, PEM. The shim passes Node's own list where the user set none.
    pub ca: Vec<String>,
    /// Client certificate chain, PEM.
    #[serde(default)]
    pub cert: Option<String>,
    /// Its private key, PEM, not encrypted.
    #[serde(default)]
    pub key: Option<Password>,
    /// Name to expect in the server's certificate, where it is not the host.
    #[serde(default)]
    pub servername: Option<String>,
    /// Whether the server's certificate is checked.
    pub reject_unauthorized: bool,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        let json = r#"{
            "topology": { "kind": "sentinel", "sentinels": [{ "host": "s", "port": 1 }], "name": "m", "password": "hunter2" },
            "password": "hunter2", "db": 3, "prefix": "p", "timeout": 1, "maxBackoff": 2,
            "tls": { "ca": [], "key": "hunter2", "rejectUnauthorized": true }
        }"#;
        let settings: RedisSettings = serde_json::from_str(json).unwrap();
        assert_eq!(settings.password.as_ref().unwrap().expose(), "hunter2");
        let text = format!("{settings:?}");
        assert!(
            text.contains("[redacted]") && !text.contains("hunter2"),
            "{text}"
        );
    }

    /// The shim's tests write the file: all that its option can become.
    #[test]
    fn what_the_shim_passes_is_read() {
        let golden = include_str!("../../../tests/redis-settings.json");
        let all: Vec<RedisSettings> = serde_json::from_str(golden).unwrap();
        let kind = |wanted: fn(&Topology) -> bool| all.iter().any(|s| wanted(&s.topology));
        assert!(kind(|t| matches!(t, Topology::Standalone { .. })));
        assert!(kind(|t| matches!(t, Topology::Socket { .. })));
        assert!(kind(
            |t| matches!(t, Topology::Sentinel { password: Some(_), tls: Some(_), nat, .. } if nat.len() == 2)
        ));
        assert!(kind(
            |t| matches!(t, Topology::Cluster { nodes, .. } if nodes.len() == 4)
        ));
        assert!(all.iter().any(|s| s.db == 3 && s.username.is_some()));
        let tls = |wanted: fn(&Tls) -> bool| all.iter().filter_map(|s| s.tls.as_ref()).any(wanted);
        assert!(tls(|tls| tls.key.is_some() && tls.cert.is_some()));
        assert!(tls(|tls| !tls.reject_unauthorized && tls.ca.is_empty()));
        assert!(tls(|tls| tls.ca == ["those that Node trusts"]));
        assert!(all.iter().all(|s| s.prefix == "p" && s.timeout == 3_000));
    }

    #[test]
    fn addresses_are_read_as_redis_writes_them() {
        let parse = |text| Endpoint::parse(text, "me").map(|e| (e.to_string(), e.host));
        assert_eq!(
            parse("10.0.0.1:7"),
            Some(("10.0.0.1:7".into(), "10.0.0.1".into()))
        );
        assert_eq!(parse(":7"), Some(("me:7".into(), "me".into())));
        assert_eq!(parse("::1:7"), Some(("[::1]:7".into(), "::1".into())));
        assert_eq!(parse("x"), None);
        assert_eq!(parse("x:70000"), None);
    }
}
