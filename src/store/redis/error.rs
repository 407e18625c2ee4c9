//! What can go wrong between a node and Redis, and what to do about it.

use std::fmt::Display;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// Longest part of a server's own words that an error repeats.
const LONGEST_QUOTE: usize = 200;

/// Kinds of [`StoreError`]. After each of them the script may or may not have run; the next
/// heartbeat tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection could be made, or it broke.
    Unreachable,
    /// Redis, or a sentinel, did not answer in time.
    Timeout,
    /// TLS could not be agreed on.
    Tls,
    /// User name or password were refused, or are missing.
    Auth,
    /// The user lacks a right.
    Denied,
    /// The database number was refused.
    Database,
    /// The server is a replica, where nothing can be written.
    ReadOnly,
    /// The sentinels name a master that says it is none.
    WrongRole,
    /// No sentinel that answered knows a master by this name.
    NoMaster,
    /// The server answers, but cannot serve now: loading, failing over, moving a slot, out of memory.
    Unavailable,
    /// The script failed: the stored state is not what this version writes, or Redis is too old.
    Script,
    /// An answer that no Redis gives.
    Protocol,
    /// Settings that cannot be used, such as a certificate that is none. Retrying is no use.
    Settings,
}

impl Failure {
    /// Stable name, for logs: the same trouble keeps the same key.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Denied => "denied",
            Self::Database => "database",
            Self::ReadOnly => "read-only",
            Self::WrongRole => "wrong-role",
            Self::NoMaster => "no-master",
            Self::Unavailable => "unavailable",
            Self::Script => "script",
            Self::Protocol => "protocol",
            Self::Settings => "settings",
        }
    }

    /// Whether the connection is good for the next command. A server that cannot serve may never
    /// again: another one may have taken over.
    pub(super) fn keeps_connection(self) -> bool {
        matches!(self, Self::Denied | Self::Script)
    }
}

/// Why Redis did not do what it was asked. One line that says what to set; never a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What kind of trouble it is.
    pub failure: Failure,
    message: String,
}

impl StoreError {
    pub(super) fn new(failure: Failure, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { failure, message }
    }

    /// `server` did not answer within `patience_ms`.
    pub(super) fn timeout(server: impl Display, doing: &str, patience_ms: u128) -> Self {
        let message = format!("Redis at {server} did not answer within {patience_ms} ms ({doing})");
        Self::new(Failure::Timeout, message)
    }

    /// Key under which it is logged once: [`Failure::code`] after the word `redis`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("redis {}", self.failure.code())
    }

    /// Names what the crate reported. `secrets` are cut out of whatever the server said.
    pub(super) fn of(error: &RedisError, server: impl Display, secrets: &[&str]) -> Self {
        let said = quote(error, secrets);
        let at = format!("Redis at {server}");
        let (failure, message) = match failure(error, &said) {
            Failure::Unreachable => (
                Failure::Unreachable,
                format!("the connection to {at} broke: {said}"),
            ),
            Failure::Auth => (
                Failure::Auth,
                format!(
                    "{at} refused the login ({said}): set username and password in the redis option to those of a user of this Redis"
                ),
            ),
            Failure::Denied => (
                Failure::Denied,
                format!(
                    "{at} denies its user a right ({said}): docs/ARCHITECTURE.md lists what SmartRoute needs"
                ),
            ),
            Failure::Database => (
                Failure::Database,
                format!(
                    "{at} refused the database ({said}): set db in the redis option to one it has; a Redis Cluster has only 0"
                ),
            ),
            Failure::ReadOnly => (
                Failure::ReadOnly,
                format!(
                    "{at} is a read-only replica: the redis option has to name the master, or the sentinels"
                ),
            ),
            Failure::Script => (
                Failure::Script,
                format!("{at} could not run the registry script: {said}"),
            ),
            failure => (failure, format!("{at} cannot serve now: {said}")),
        };
        Self::new(failure, message)
    }
}

/// Redis 6.2 wraps what a command inside a script answered into an `ERR`, with the code somewhere
/// in the text; Redis 7 passes the code on, but has none for a right that the script lacks. Only
/// there the text is looked at.
fn failure(error: &RedisError, said: &str) -> Failure {
    let code = match error.kind() {
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => return Failure::Unreachable,
        ErrorKind::AuthenticationFailed => return Failure::Auth,
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => return Failure::Protocol,
        // The crate's own check of SELECT; a script has no such category.
        ErrorKind::Server(ServerErrorKind::ResponseError)
            if said.contains("refused to switch database") =>
        {
            return Failure::Database;
        }
        _ => error.code().unwrap_or_default(),
    };
    let code = match code {
        "ERR" if said.contains("The user executing the script can't") => "NOPERM",
        "ERR" => INSIDE
            .into_iter()
            .find(|inside| said.contains(&format!("-{inside} ")))
            .unwrap_or(code),
        code => code,
    };
    match code {
        "NOAUTH" | "WRONGPASS" => Failure::Auth,
        "NOPERM" => Failure::Denied,
        "READONLY" => Failure::ReadOnly,
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "OOM" | "MISCONF"
        | "NOREPLICAS" | "MOVED" | "ASK" => Failure::Unavailable,
        _ => Failure::Script,
    }
}

const INSIDE: [&str; 5] = ["READONLY", "NOPERM", "OOM", "MISCONF", "NOREPLICAS"];

/// What the server said, short, on one line, without secrets: some proxies repeat a command they
/// do not know, arguments and all.
fn quote(error: &RedisError, secrets: &[&str]) -> String {
    let mut text = error.to_string();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[redacted]");
    }
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_QUOTE)
        .collect();
    if line.len() < text.len() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::redis::{ErrorKind, make_extension_error};

    fn of(code: &str, detail: &str) -> StoreError {
        let error = make_extension_error(code.into(), Some(detail.into()));
        StoreError::of(&error, "redis:6379", &["hunter2"])
    }

    #[test]
    fn codes_become_kinds() {
        for (code, failure) in [
            ("NOAUTH", Failure::Auth),
            ("WRONGPASS", Failure::Auth),
            ("NOPERM", Failure::Denied),
            ("READONLY", Failure::ReadOnly),
            ("MISCONF", Failure::Unavailable),
            ("NOREPLICAS", Failure::Unavailable),
            ("WRONGTYPE", Failure::Script),
        ] {
            assert_eq!(of(code, "x").failure, failure, "{code}");
        }
    }

    #[test]
    fn codes_are_hidden_in_what_scripts_fail_with() {
        let text = "Error running script (call to f_1): @user_script:3: @user_script: 3: -READONLY You can't write against a read only replica.";
        assert_eq!(of("ERR", text).failure, Failure::ReadOnly);
        let text = "The user executing the script can't run this command or subcommand script: 1";
        assert_eq!(of("ERR", text).failure, Failure::Denied);
        assert_eq!(of("ERR", "no code -in here").failure, Failure::Script);
    }

    #[test]
    fn secrets_and_control_characters_stay_out() {
        let error = of(
            "ERR",
            &format!("unknown command `AUTH` `hunter2`\r\n{}", "x".repeat(500)),
        );
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("[redacted]") && text.contains('…'), "{text}");
        assert!(!error.to_string().contains(char::is_control));
        assert!(error.to_string().len() < 400);
    }

    #[test]
    fn a_broken_connection_is_unreachable() {
        let error = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let error = StoreError::of(&error, "redis:6379", &[]);
        assert_eq!(error.failure, Failure::Unreachable);
        assert_eq!(error.key(), "redis unreachable");
        let error = RedisError::from((ErrorKind::AuthenticationFailed, "no"));
        assert_eq!(StoreError::of(&error, "x", &[]).failure, Failure::Auth);
    }
}
