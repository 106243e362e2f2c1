//! What hapax says to `tracing`, kept for the tests of this process. One subscriber serves them all, because hapax's
//! threads have no other: tests tell their own events apart by their unique topic.

#![allow(dead_code, reason = "each test takes the part that it needs")]

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, OnceLock};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry, registry::LookupSpan};

/// An event, or a span with everything that was said of it.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) level: Level,
    /// The span's name; empty for an event.
    pub(crate) span: &'static str,
    pub(crate) fields: BTreeMap<&'static str, String>,
    /// The fields of the spans that an event lies in.
    pub(crate) within: BTreeMap<&'static str, String>,
}

impl Said {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Message and fields in one text.
    pub(crate) fn text(&self) -> String {
        let mut text = self.field("message").to_owned();
        for (name, value) in self.fields.iter().filter(|(name, _)| **name != "message") {
            let _ = write!(text, " {name}={value}");
        }
        text
    }
}

struct Kept {
    said: Mutex<Vec<Said>>,
    /// `IT_LOG` is set: for whoever looks for the cause of a failure.
    prints: bool,
}

/// Starts keeping. Called first by every test that asks later.
pub(crate) fn listen() {
    kept();
}

/// Everything kept that `wanted` picks.
pub(crate) fn all(wanted: impl Fn(&Said) -> bool) -> Vec<Said> {
    kept()
        .said
        .lock()
        .unwrap()
        .iter()
        .filter(|said| wanted(said))
        .cloned()
        .collect()
}

fn kept() -> &'static Kept {
    static KEPT: OnceLock<&'static Kept> = OnceLock::new();
    KEPT.get_or_init(|| {
        let kept: &'static Kept = Box::leak(Box::new(Kept {
            said: Mutex::default(),
            prints: std::env::var_os("IT_LOG").is_some(),
        }));
        tracing::subscriber::set_global_default(Registry::default().with(Keeper(kept)))
            .expect("no other test sets a subscriber");
        kept
    })
}

struct Keeper(&'static Kept);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        *metadata.level() <= Level::DEBUG && (target.starts_with("hapax") || target.starts_with("it"))
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut within = BTreeMap::new();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(Fields(fields)) = span.extensions().get() {
                within.extend(fields.clone());
            }
        }
        self.keep(event.metadata(), "", fields, within);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(span) = context.span(&id)
            && let Some(fields) = span.extensions_mut().remove::<Fields>()
        {
            self.keep(span.metadata(), span.name(), fields, BTreeMap::new());
        }
    }
}

impl Keeper {
    fn keep(
        &self,
        metadata: &'static Metadata<'static>,
        span: &'static str,
        fields: Fields,
        within: BTreeMap<&'static str, String>,
    ) {
        let said = Said {
            level: *metadata.level(),
            span,
            fields: fields.0,
            within,
        };
        if self.0.prints {
            eprintln!("{} {span}{}", said.level, said.text());
        }
        self.0.said.lock().unwrap().push(said);
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}
