//! The consumer: topics with their handlers, configured by code, file and environment, and run.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use crate::bound::Bound;
use crate::config::{self, Durability, Layer, Settings};
use crate::error::Error;
use crate::handler::{self, Binding, Callee, Context, Decode, Handler, HandlerError, IntoReply, Topic};
use crate::runtime::{self, Summary};

/// A Kafka consumer whose effects happen once: one consumer group, one state directory, a handler for each topic.
///
/// ```no_run
/// use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
///
/// #[derive(serde::Deserialize)]
/// struct Order { id: String, cents: u64 }
///
/// # async fn example() -> Result<(), hapax::Error> {
/// Consumer::local("billing", "./state")
///     .brokers("localhost:9092")
///     .handle(
///         Topic::json::<Order>("orders", NonIdempotent).window(Window::hours(24)),
///         |order: Order, _cx: Context| async move {
///             println!("charging {} for {}", order.cents, order.id);
///             Ok(())
///         },
///     )
///     .run()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// Precedence: environment (`HAPAX_…`) over file over code over default. Nothing is connected to before all of it is
/// checked.
#[must_use = "a consumer does nothing until it is run"]
pub struct Consumer {
    file: Layer,
    code: Layer,
    bound: BTreeMap<String, Bound>,
    problem: Option<Error>,
}

impl Consumer {
    /// A consumer that keeps its window on this machine, in `state_dir`: outcomes are synced to the local disk before
    /// an offset is committed. What that loses in which failure is printed by `hapax explain`.
    ///
    /// A state directory belongs to one group and one process at a time.
    pub fn local(group: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self::of(Durability::Local, group.into(), state_dir.into())
    }

    /// A consumer that keeps its window in Kafka: states, dead letters and offsets are committed in one transaction, to
    /// a changelog topic for each topic, `<group>.<topic>.hapax`. The window moves with its partition, and `state_dir`
    /// holds a copy of it that may be lost. What that loses in which failure is printed by `hapax explain`.
    ///
    /// The first start creates the changelog topics; where it may not, it says which there have to be, with the command.
    ///
    /// ```no_run
    /// # use hapax::{Consumer, Context, NonIdempotent, Topic, Window};
    /// # async fn example() -> Result<(), hapax::Error> {
    /// Consumer::replicated("billing", "./state")
    ///     .brokers("k1:9092,k2:9092")
    ///     .handle(
    ///         Topic::bytes("orders", NonIdempotent).window(Window::hours(24)),
    ///         |order, cx: Context| async move {
    ///             // The fence grows with each assignment, whichever process has it.
    ///             println!("{} bytes, fence {:?}", order.len(), cx.fence());
    ///             Ok(())
    ///         },
    ///     )
    ///     .run()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn replicated(group: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self::of(Durability::Replicated, group.into(), state_dir.into())
    }

    fn of(durability: Durability, group: String, state_dir: PathBuf) -> Self {
        let code = Layer {
            group: Some(group),
            state_dir: Some(state_dir),
            durability: Some(durability),
            ..Layer::default()
        };
        Self {
            file: Layer::default(),
            code,
            bound: BTreeMap::new(),
            problem: None,
        }
    }

    /// A consumer configured by a `hapax.toml`. Topics that the file describes need no window in code; each still
    /// needs a handler.
    ///
    /// # Errors
    /// [`Error::Config`] where the file cannot be read, or says something that hapax does not know.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let file = config::file(path.as_ref())?;
        Ok(Self {
            file,
            code: Layer::default(),
            bound: BTreeMap::new(),
            problem: None,
        })
    }

    /// The brokers to begin with, as `host:port,host:port`.
    pub fn brokers(mut self, brokers: impl Into<String>) -> Self {
        self.code.brokers = Some(brokers.into());
        self
    }

    /// Changes what code says of the settings that have no method of their own.
    ///
    /// ```
    /// # use hapax::{Consumer, config::Cold};
    /// let consumer = Consumer::local("billing", "./state").with(|layer| layer.cold = Some(Cold::Run));
    /// ```
    pub fn with(mut self, change: impl FnOnce(&mut Layer)) -> Self {
        change(&mut self.code);
        self
    }

    /// Adds a topic with a handler that answers nothing.
    pub fn handle<D, S, F, Fut>(self, topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.bind(handler::closure(topic, handler))
    }

    /// Adds a topic with a handler whose reply is kept with the outcome.
    pub fn handle_reply<D, S, F, Fut, R>(self, topic: Topic<D, S>, handler: F) -> Self
    where
        D: Decode,
        S: Clone + Send + Sync + 'static,
        F: Fn(D::Message, Context<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
        R: IntoReply,
    {
        self.bind(handler::closure(topic, handler))
    }

    /// Adds a topic with a value that implements [`Handler`].
    pub fn handler<D: Decode, H: Handler<D::Message>>(self, topic: Topic<D>, handler: H) -> Self {
        self.bind(handler::object(topic, handler))
    }

    fn bind<C: Callee>(mut self, binding: Binding<C>) -> Self {
        let Binding {
            topic,
            layer,
            readers,
            callee,
        } = binding;
        if self
            .bound
            .insert(topic.clone(), Bound::new(callee, readers))
            .is_some()
        {
            self.problem
                .get_or_insert(Error::TwoHandlers { topic: topic.clone() });
        }
        self.code.topics.insert(topic, layer);
        self
    }

    /// What all layers together come to, checked; nothing is connected to.
    ///
    /// # Errors
    /// [`Error::Config`] with everything that is wrong, [`Error::NoHandler`] and [`Error::TwoHandlers`].
    pub fn settings(&self) -> Result<Settings, Error> {
        // Variables that are not Unicode are nobody's setting of ours.
        let unicode = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let env = config::env(unicode)?;
        let settings = config::resolve(env, self.file.clone(), self.code.clone())?;
        match settings
            .topics
            .keys()
            .find(|topic| !self.bound.contains_key(*topic))
        {
            Some(topic) => Err(Error::NoHandler { topic: topic.clone() }),
            None => Ok(settings),
        }
    }

    /// Runs until SIGTERM or SIGINT, then drains: what runs may finish within `drain`, is recorded and committed.
    ///
    /// # Errors
    /// Whatever refused the start or ended the run. Everything recorded until then stays recorded.
    pub async fn run(self) -> Result<Summary, Error> {
        let stop = shutdown_signal()?;
        self.run_until(stop).await
    }

    /// Runs until `stop` is ready, then drains.
    ///
    /// Cancel safety: dropping the returned future asks for the same end, in the background. Threads and handlers of
    /// this consumer go on for at most `drain` and a little, record and commit what they finished, and close the store;
    /// until then the state directory is in use, and nobody is told how it ended. Await the future to know. A process
    /// that exits meanwhile, or drops the tokio runtime, ends it as a crash would: nothing recorded is lost, and what
    /// ran is in doubt by its class.
    ///
    /// # Errors
    /// Whatever refused the start or ended the run. Everything recorded until then stays recorded.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<Summary, Error> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let settings = self.settings()?;
        let mut handled = BTreeMap::new();
        for (topic, policy) in &settings.topics {
            if let Some(bound) = self.bound.get(topic) {
                handled.insert(topic.clone(), bound.ready(topic, policy)?);
            }
        }
        runtime::run(settings, handled, stop).await
    }
}

/// Ready at the first SIGTERM or SIGINT.
fn shutdown_signal() -> Result<impl Future<Output = ()>, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen =
        |kind| signal(kind).map_err(|error| Error::Internal(format!("listening for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
