//! A topic's handler with its types erased: what a consumer keeps until configuration says the topic's policy.

use std::sync::Arc;

use crate::attempt::{Factory, Terms, Typed};
use crate::config::TopicPolicy;
use crate::error::Error;
use crate::handler::{Callee, Readers};
use crate::token::Reader;

/// Deadlines are the policy's, so the handler can be made only once that is known.
type Make = Box<dyn Fn(&TopicPolicy) -> Arc<dyn Factory> + Send>;

/// A handler, waiting for the policy of its topic.
pub(crate) struct Bound {
    readers: Readers,
    make: Make,
}

/// A topic with its handler, ready to be run.
pub(crate) struct Handled {
    pub(crate) factory: Arc<dyn Factory>,
    pub(crate) readers: Vec<Reader>,
}

impl Bound {
    pub(crate) fn new<C: Callee>(callee: Arc<C>, readers: Readers) -> Self {
        let make = Box::new(move |policy: &TopicPolicy| -> Arc<dyn Factory> {
            let terms = Terms {
                deadline: policy.deadline,
                probe_deadline: policy.probe_deadline,
                offload: policy.offload,
            };
            let callee = Arc::clone(&callee);
            let outputs = Arc::new(policy.outputs.clone());
            Arc::new(Typed {
                callee,
                terms,
                outputs,
            })
        });
        Self { readers, make }
    }

    /// The handler under that policy.
    ///
    /// # Errors
    /// [`Error::NoTokenCode`] where the policy names a closure that code does not have.
    pub(crate) fn ready(&self, topic: &str, policy: &TopicPolicy) -> Result<Handled, Error> {
        let readers = self
            .readers
            .of(&policy.token)
            .map_err(|name| Error::NoTokenCode {
                topic: topic.to_owned(),
                name,
            })?;
        let factory = self.factory(policy);
        Ok(Handled { factory, readers })
    }

    /// The handler alone, under that policy.
    pub(crate) fn factory(&self, policy: &TopicPolicy) -> Arc<dyn Factory> {
        (self.make)(policy)
    }
}
