//! Pure cluster state: no I/O, no clock, no napi.

pub mod handoff;
pub mod health;
pub mod members;
pub mod right;
pub mod ring;
pub mod settled;
pub mod view;
