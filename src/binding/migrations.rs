//! What the shim says about documents that move away, and how far they are.

use napi_derive::napi;

use super::{NativeNode, parse};

#[napi]
impl NativeNode {
    /// Something happened to a document that moves away: the JSON of one `handoff::Event`. The
    /// answer is a record. Of no effect once the node was destroyed.
    #[napi(catch_unwind)]
    pub fn handoff(&self, event: String) -> napi::Result<()> {
        self.migrations.tell(parse(&event)?);
        Ok(())
    }

    /// Documents that move away, at most 1,000: those whose move runs, then the others in the order
    /// of their turns. JSON.
    #[napi(catch_unwind)]
    pub fn migrations(&self) -> String {
        self.migrations.list(self.core.started.elapsed())
    }
}
