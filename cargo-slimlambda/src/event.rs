//! What happened, said by a stage and drawn by `report`.
//!
//! Stages call `&(dyn Fn(Event<'_>) + Sync)` and never print: a terminal shows a status line, CI
//! shows nothing but warnings, and JSON output stays JSON.

/// The callback that every stage reports to.
pub type Sink<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// One thing worth telling while the work goes on.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A stage begins; `verb` is Cargo's kind of word (`Checking`), `what` its object.
    Status {
        /// Right-aligned verb in Cargo's manner.
        verb: &'a str,
        /// What is being worked on.
        what: &'a str,
    },
    /// Work of a known size moved on.
    Progress {
        /// What is being worked on.
        what: &'a str,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Something the user should know, though the work goes on. May hold several lines.
    Warning(&'a str),
    /// A remark that helps, without anything being wrong.
    Note(&'a str),
}
