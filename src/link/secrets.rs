//! The cluster's secrets, and proofs that a node knows one of them: several while one takes the
//! place of another.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Length of a proof in bytes.
pub const PROOF: usize = 32;

/// As many may be accepted at the same time; `js/options.js` takes no more.
pub const MAX_SECRETS: usize = 4;

/// Bytes of a key: enough to tell four secrets apart.
const KEY: usize = 8;

const NAME: &[u8] = b"smartroute-link-1 key";

/// One secret; empty where none is configured.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    fn mac(&self, label: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in std::iter::once(&label).chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }

    /// HMAC-SHA256 over a label, which says what for, and some parts.
    pub(crate) fn prove(&self, label: &[u8], parts: &[&[u8]]) -> [u8; PROOF] {
        self.mac(label, parts).finalize().into_bytes().into()
    }

    /// Whether `proof` is that of the same, in time that does not depend on where they differ.
    pub(crate) fn proves(&self, label: &[u8], parts: &[&[u8]], proof: &[u8]) -> bool {
        self.mac(label, parts).verify_slice(proof).is_ok()
    }

    /// Names the secret to who knows it, for this nonce only.
    fn key(&self, nonce: &str) -> String {
        hex(&self.prove(NAME, &[nonce.as_bytes()])[..KEY])
    }

    /// The secret itself, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// Identities are printed in traces and failed tests.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The secrets a node accepts, the newest first. Never empty: without a secret, the empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// The given ones, the newest first; empty ones are none.
    pub fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let given = secrets.into_iter().map(|secret| secret.as_ref().to_vec());
        let mut secrets: Vec<_> = given.filter(|one| !one.is_empty()).map(Secret).collect();
        if secrets.is_empty() {
            secrets.push(Secret(Vec::new()));
        }
        Self(secrets)
    }

    /// Whether any is configured.
    #[must_use]
    pub fn are_set(&self) -> bool {
        !self.newest().0.is_empty()
    }

    /// The one to be used among nodes that all know it.
    pub(crate) fn newest(&self) -> &Secret {
        &self.0[0]
    }

    /// The one that is on its way out. A node of a version that knows one secret only does not say
    /// which; while secrets are exchanged it is still this one.
    pub(crate) fn oldest(&self) -> &Secret {
        &self.0[self.0.len() - 1]
    }

    /// All of them, the newest first.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Secret> {
        self.0.iter()
    }

    /// What tells a peer which secrets this node knows; nothing where it has none.
    pub(crate) fn keys(&self, nonce: &str) -> Vec<String> {
        let set = self.0.iter().filter(|secret| !secret.0.is_empty());
        set.map(|secret| secret.key(nonce)).collect()
    }

    /// The newest one that a peer with these keys knows too.
    pub(crate) fn shared(&self, keys: &[String], nonce: &str) -> Option<&Secret> {
        let known = |secret: &&Secret| keys.contains(&secret.key(nonce));
        self.0.iter().find(known)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for; `None` for anything else.
pub(crate) fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed() {
        let secrets = Secrets::new(["a secret", "another"]);
        assert_eq!(format!("{secrets:?}"), "Secrets([[redacted], [redacted]])");
    }

    #[test]
    fn keys_say_what_two_nodes_share_and_to_nobody_else() {
        let (ours, theirs) = (Secrets::new(["c", "b", "a"]), Secrets::new(["x", "a", "b"]));
        let keys = theirs.keys("nonce");
        assert_eq!(ours.shared(&keys, "nonce"), Some(&Secret(b"b".to_vec())));
        assert_eq!(ours.shared(&keys, "another nonce"), None);
        assert_eq!(Secrets::new(["c"]).shared(&keys, "nonce"), None);
    }

    #[test]
    fn no_secret_has_no_key() {
        let none = Secrets::new([""]);
        assert_eq!(none, Secrets::new([] as [&str; 0]));
        assert!(!none.are_set());
        assert_eq!(none.keys("nonce"), [] as [String; 0]);
        assert_eq!(Secrets::new(["", "a"]), Secrets::new(["a"]));
    }
}
