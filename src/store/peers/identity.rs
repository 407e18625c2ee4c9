//! A node as SWIM names it, and as it travels.

use serde::{Deserialize, Serialize};

use super::MAX_NAME;
use crate::cluster::view::{Member, MemberState};

/// A node as SWIM names it. Of two with one id the later start wins, then the later generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireIdentity", into = "WireIdentity")]
pub(super) struct Identity {
    pub(super) id: String,
    /// The incarnation, or more where the clock of a restarted node is behind its predecessor's.
    pub(super) start: u64,
    /// Grows when the node changes what it says of itself, or was taken for dead.
    pub(super) generation: u32,
    pub(super) incarnation: u64,
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) link_port: Option<u16>,
    /// `f64::to_bits`: SWIM compares identities, and floats have no equality to rely on.
    pub(super) weight: u64,
    pub(super) state: MemberState,
}

#[derive(Serialize, Deserialize)]
struct WireIdentity(
    String,
    u64,
    u32,
    u64,
    String,
    u16,
    Option<u16>,
    u64,
    MemberState,
);

impl From<Identity> for WireIdentity {
    fn from(it: Identity) -> Self {
        Self(
            it.id,
            it.start,
            it.generation,
            it.incarnation,
            it.address,
            it.port,
            it.link_port,
            it.weight,
            it.state,
        )
    }
}

impl TryFrom<WireIdentity> for Identity {
    type Error = &'static str;

    fn try_from(wire: WireIdentity) -> Result<Self, Self::Error> {
        let WireIdentity(
            id,
            start,
            generation,
            incarnation,
            address,
            port,
            link_port,
            weight,
            state,
        ) = wire;
        check_name(&id)?;
        check_name(&address)?;
        check_weight(weight)?;
        Ok(Self {
            id,
            start,
            generation,
            incarnation,
            address,
            port,
            link_port,
            weight,
            state,
        })
    }
}

pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err("a name of no sensible length");
    }
    Ok(())
}

pub(super) fn check_weight(bits: u64) -> Result<(), &'static str> {
    let weight = f64::from_bits(bits);
    if weight > 0.0 && weight <= 1000.0 {
        Ok(())
    } else {
        Err("a weight outside of 0 to 1000")
    }
}

impl Identity {
    pub(super) fn new(member: &Member, start: u64, generation: u32) -> Self {
        Self {
            id: member.id.clone(),
            start,
            generation,
            incarnation: member.incarnation,
            address: member.address.clone(),
            port: member.port,
            link_port: member.link_port,
            weight: member.weight.to_bits(),
            state: member.state,
        }
    }

    pub(super) fn order(&self) -> (u64, u32) {
        (self.start, self.generation)
    }

    pub(super) fn member(&self) -> Member {
        Member {
            id: self.id.clone(),
            incarnation: self.incarnation,
            address: self.address.clone(),
            port: self.port,
            link_port: self.link_port,
            weight: f64::from_bits(self.weight),
            state: self.state,
        }
    }
}

impl foca::Identity for Identity {
    type Addr = String;

    fn renew(&self) -> Option<Self> {
        let generation = self.generation.checked_add(1)?;
        Some(Self {
            generation,
            ..self.clone()
        })
    }

    fn addr(&self) -> String {
        self.id.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.order() > adversary.order()
    }
}

pub(super) type Known = foca::Member<Identity>;
