//! What the host tells machines: its log, its metrics.
//!
//! - [`log`]: which lines there are, how they look, and where they go
//! - [`exposition`]: the text that Prometheus reads

pub(crate) mod exposition;
pub(crate) mod log;

use std::{fmt, sync::Arc};

use self::exposition::Exposition;
pub(crate) use self::log::{
    AccessEntry, AccessLog, Kept, Recent, Role, flush, init, recent, reopen, rotate, rotated,
    set_level,
};

/// Gathers the metrics of the host when somebody asks.
#[derive(Clone)]
pub struct Gather(Arc<dyn Fn(&mut Exposition) + Send + Sync>);

impl Gather {
    /// By calling `gather`, which may block.
    pub fn new(gather: impl Fn(&mut Exposition) + Send + Sync + 'static) -> Self {
        Self(Arc::new(gather))
    }

    /// All of them, as text. Gathered on a thread that serves no requests.
    ///
    /// # Errors
    /// When gathering panicked.
    pub async fn text(&self) -> Result<String, tokio::task::JoinError> {
        let gather = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let mut exposition = Exposition::default();
            gather(&mut exposition);
            exposition.into_text()
        })
        .await
    }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gather")
    }
}
