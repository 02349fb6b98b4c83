//! What keeps a library mapped: the kind of it for programs, the sentence for people.

use std::fmt;

/// What keeps a library mapped, as one of a few kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetainReason {
    /// Threads that it started, or that nobody can account for.
    Threads,
    /// Thread-locals of it on threads of the host.
    ThreadLocals,
    /// Signals that it handles.
    Signals,
    /// What libc does for it: input and output, look-ups of names.
    Requests,
    /// Pointers to it that a shared library keeps which came along.
    References,
    /// Its constructor, which has not returned.
    Constructor,
    /// Its destructors, which have not returned.
    Destructors,
    /// The dynamic linker.
    Linker,
    /// Something that the host itself could not do.
    Host,
    /// A crash of an earlier host, in what it had left behind.
    Crash,
}

impl RetainReason {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Threads,
        Self::ThreadLocals,
        Self::Signals,
        Self::Requests,
        Self::References,
        Self::Constructor,
        Self::Destructors,
        Self::Linker,
        Self::Host,
        Self::Crash,
    ];

    /// The word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::ThreadLocals => "thread_locals",
            Self::Signals => "signals",
            Self::Requests => "requests",
            Self::References => "references",
            Self::Constructor => "constructor",
            Self::Destructors => "destructors",
            Self::Linker => "linker",
            Self::Host => "host",
            Self::Crash => "crash",
        }
    }
}

/// All that keeps one library mapped, each with its sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetainReasons(Vec<(RetainReason, String)>);

impl RetainReasons {
    /// By one thing.
    pub fn by(holder: RetainReason, sentence: impl Into<String>) -> Self {
        Self(vec![(holder, sentence.into())])
    }

    /// By one thing more.
    pub fn add(&mut self, holder: RetainReason, sentence: impl Into<String>) {
        self.0.push((holder, sentence.into()));
    }

    /// Whether nothing holds it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The kinds, each once.
    pub fn reasons(&self) -> Vec<RetainReason> {
        let mut holders: Vec<_> = self.0.iter().map(|(holder, _)| *holder).collect();
        holders.sort();
        holders.dedup();
        holders
    }
}

impl fmt::Display for RetainReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (_, sentence)) in self.0.iter().enumerate() {
            let gap = if at == 0 { "" } else { "; " };
            write!(f, "{gap}{sentence}")?;
        }
        Ok(())
    }
}
