//! The admin ports of running consumers, as the verbs speak to them. `ureq` is named here only.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Failure, Table, count, print};
use crate::admin::shapes::{Answers, Problem, Words};

/// Longer than the port itself takes to answer (`crate::admin`).
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The bound of what is read of an answer: a thousand entries with everything in them.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// That member does not serve the partition.
const MISDIRECTED: u16 = 421;

/// Where the running consumers are.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Ports {
    /// The admin port of a running consumer: HOST:PORT. Once for each member of the group: whichever serves the partition
    /// answers.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    admin: Vec<String>,
}

/// Who changes something, and why.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Act {
    /// Why, for whoever asks later.
    #[arg(long, value_name = "TEXT", value_parser = said)]
    pub(super) reason: String,
    /// Who decides [default: $USER].
    #[arg(long, value_name = "WHO", value_parser = said)]
    by: Option<String>,
    /// The file with the token of the admin port [default: $HAPAX_ADMIN__TOKEN_FILE].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Only say what would be done.
    #[arg(long)]
    pub(super) dry_run: bool,
}

fn said(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

impl Act {
    pub(super) fn by(&self) -> String {
        let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
        self.by
            .clone()
            .or_else(user)
            .unwrap_or_else(|| "unknown".to_owned())
    }

    pub(super) fn words(&self, dry_run: bool) -> Words {
        Words {
            reason: self.reason.clone(),
            by: self.by(),
            dry_run: self.dry_run || dry_run,
        }
    }

    fn token(&self) -> Result<String, Failure> {
        let path = self
            .token_file
            .clone()
            .or_else(|| std::env::var_os("HAPAX_ADMIN__TOKEN_FILE").map(PathBuf::from));
        let Some(path) = path else {
            return Err(Failure::new(
                "a token is needed to change something: give --token-file the file that the consumer has as `admin.token_file`",
            ));
        };
        let token = std::fs::read_to_string(&path)
            .map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
        Ok(token.trim().to_owned())
    }
}

/// What a member answered.
enum Said<T> {
    Answer(T),
    /// The partition is another's.
    Elsewhere(String),
}

impl Ports {
    fn agent() -> ureq::Agent {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_MAX))
            .http_status_as_error(false)
            // The port is on this machine, or on one of ours.
            .proxy(None)
            .build();
        config.into()
    }

    fn url(address: &str, path: &str) -> String {
        let address = address.trim_start_matches("http://").trim_end_matches('/');
        format!("http://{address}{path}")
    }

    /// Asks every member, in the order of their addresses on the command line.
    pub(super) fn get_all<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Result<Vec<(&str, T)>, Failure> {
        let mut answers = Vec::new();
        let mut elsewhere = None;
        for address in &self.admin {
            let given = query
                .iter()
                .filter_map(|(name, value)| Some((*name, value.as_ref()?)));
            let request = Self::agent().get(Self::url(address, path)).query_pairs(given);
            match read(address, request.call())? {
                Said::Answer(answer) => answers.push((address.as_str(), answer)),
                Said::Elsewhere(why) => elsewhere = Some(why),
            }
        }
        match elsewhere.filter(|_| answers.is_empty()) {
            Some(why) => Err(Failure(why)),
            None => Ok(answers),
        }
    }

    /// Orders something of every member; of a partition, whichever member has it answers.
    pub(super) fn post(&self, path: &str, act: &Act, body: &impl Serialize) -> Result<Answers, Failure> {
        let (token, body) = (act.token()?, serde_json::to_string(body).map_err(Failure::new)?);
        let mut all: Option<Answers> = None;
        let mut elsewhere = None;
        for address in &self.admin {
            let sent = Self::agent()
                .post(Self::url(address, path))
                .header("authorization", format!("bearer {token}"))
                .header("content-type", "application/json")
                .send(&body);
            match read::<Answers>(address, sent)? {
                Said::Elsewhere(why) => elsewhere = Some(why),
                Said::Answer(answers) => {
                    let sum = all.get_or_insert_with(Answers::default);
                    sum.dry_run = answers.dry_run;
                    sum.more |= answers.more;
                    sum.warning = answers.warning.or(sum.warning.take());
                    sum.acts.extend(answers.acts);
                }
            }
        }
        all.ok_or_else(|| Failure(elsewhere.unwrap_or_else(|| "no admin port was asked".to_owned())))
    }
}

fn read<T: DeserializeOwned>(
    address: &str,
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<Said<T>, Failure> {
    let at = |why: &dyn std::fmt::Display| Failure::new(format_args!("{address}: {why}"));
    let mut response = response.map_err(|error| {
        at(&format_args!(
            "{error}; is that the `admin.listen` of a running consumer? Of a stopped one, give --state-dir"
        ))
    })?;
    let status = response.status().as_u16();
    let text = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .map_err(|error| at(&error))?;
    if status == 200 {
        return serde_json::from_str(&text)
            .map(Said::Answer)
            .map_err(|error| at(&format_args!("an answer of another version? {error}")));
    }
    let why = match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => problem.error,
        Err(_) => format!("{status}: {}", text.trim()),
    };
    match status {
        MISDIRECTED => Ok(Said::Elsewhere(why)),
        _ => Err(at(&why)),
    }
}

/// Prints what came of acts; 1 where one was refused, or nobody answered.
pub(super) fn show(answers: &Answers) -> ExitCode {
    let mut table = Table::new(["MESSAGE", "TOKEN", "ACT", "ANSWER", ""]);
    for came in &answers.acts {
        let offset = came
            .offset
            .map_or_else(|| "-".to_owned(), |offset| offset.to_string());
        table.row([
            format!("{}[{}]@{offset}", came.topic, came.partition),
            came.token.clone().unwrap_or_else(|| "-".to_owned()),
            came.act.clone(),
            came.answer.clone(),
            came.text.clone(),
        ]);
    }
    let number = |what: &str| answers.acts.iter().filter(|came| came.answer == what).count();
    let (done, failed) = (number("done"), number("refused") + number("unknown"));
    let mut text = match answers.acts.is_empty() {
        true => "nothing is meant by that\n".to_owned(),
        false => format!("{table}\n"),
    };
    text.push_str(&match answers.dry_run {
        true => format!("{} would be carried out; nothing was done\n", count(done, "act")),
        false => format!(
            "{} carried out, {} unchanged, {failed} not\n",
            count(done, "act"),
            number("unchanged")
        ),
    });
    if answers.more {
        text.push_str("there are more than these: ask again after it\n");
    }
    if let Some(warning) = &answers.warning {
        text.push_str(&format!("warning: {warning}\n"));
    }
    print(&text);
    ExitCode::from(u8::from(failed > 0))
}
