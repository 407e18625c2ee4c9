//! Pure cluster state: no I/O, no clock, no napi.

pub mod ring;
pub mod view;
