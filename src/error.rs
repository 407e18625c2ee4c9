//! The one error enum of the core. Link and handshake failures never reach JavaScript as errors:
//! they are records, because nobody called anything.

use crate::store::model::PINS;
use crate::store::peers::MAX_NAME;

/// Why a call from the shim failed. No state has changed in any case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim passed something that is not the JSON it should be: a bug in the shim.
    #[error("malformed settings: {0}")]
    Settings(#[from] serde_json::Error),
    /// A descriptor cannot be taken over.
    #[error("cannot take the socket over: {0}")]
    Takeover(#[from] std::io::Error),
    /// So many documents are pinned already.
    #[error("{PINS} documents are pinned, which is the most: unpin some first")]
    Pins,
    /// A document or node cannot be named in a pin.
    #[error(
        "a pin needs a document and a node of 1 to {MAX_NAME} bytes each: a longer name cannot be pinned"
    )]
    PinName,
    /// The node was destroyed.
    #[error("this node was destroyed")]
    Destroyed,
}
