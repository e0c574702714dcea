//! Where the output goes, and whether with colours. The only place that reads the terminal's environment and writes to
//! standard output.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use crate::Trouble;
use crate::cli::Form;

/// How something is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shade {
    /// Just text.
    Plain,
    /// A head or a name.
    Strong,
    /// Of less weight.
    Faint,
    /// As it should be.
    Good,
    /// On its way.
    Waiting,
    /// Wrong.
    Bad,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ink {
    colours: bool,
}

impl Ink {
    /// Plain text.
    pub const fn none() -> Self {
        Self { colours: false }
    }

    /// With colours.
    pub const fn colours() -> Self {
        Self { colours: true }
    }

    /// The text in its shade.
    pub fn paint(self, text: &str, shade: Shade) -> String {
        let code = match shade {
            Shade::Plain => "",
            Shade::Strong => "1",
            Shade::Faint => "2",
            Shade::Good => "32",
            Shade::Waiting => "33",
            Shade::Bad => "31",
        };
        if !self.colours || code.is_empty() || text.is_empty() {
            return text.to_owned();
        }
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Colours, or none.
    pub ink: Ink,
    is_terminal: bool,
}

impl Screen {
    /// As the environment says: colours on terminals only, never with `NO_COLOR` (<https://no-color.org>), never on a dumb terminal.
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the environment")]
    pub fn of_process() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let ink = if is_terminal && !refused && !dumb { Ink::colours() } else { Ink::none() };
        Self { ink, is_terminal: is_terminal && !dumb }
    }

    /// Whether what was printed can be drawn again.
    pub const fn redraws(&self) -> bool {
        self.is_terminal
    }

    /// Prints text.
    pub fn print(&self, text: &str) -> Result<(), Trouble> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints text in the place of what was printed before; without a terminal below it.
    pub fn redraw(&self, text: &str, first: bool) -> Result<(), Trouble> {
        if self.is_terminal {
            // Home, the text, each line cleared to its end, and all below it: nothing flickers.
            let lines = text.replace('\n', "\u{1b}[K\n");
            let clear = if first { "\u{1b}[2J" } else { "" };
            return self.print(&format!("{clear}\u{1b}[H{lines}\u{1b}[J"));
        }
        self.print(&if first { text.to_owned() } else { format!("\n{text}") })
    }

    /// Prints plain data in the form that was asked for, or what `text` makes of it.
    pub fn show<V: Serialize>(
        &self,
        form: Option<Form>,
        view: &V,
        text: impl FnOnce(Ink) -> String,
    ) -> Result<(), Trouble> {
        self.print(&formed(form, view, || text(self.ink))?)
    }
}

/// A view in the form that was asked for.
pub fn formed<V: Serialize>(form: Option<Form>, view: &V, text: impl FnOnce() -> String) -> Result<String, Trouble> {
    let broken = |error: String| Trouble::Usage(format!("the answer cannot be written in this form: {error}"));
    match form {
        None | Some(Form::Wide) => Ok(text()),
        Some(Form::Json) => {
            serde_json::to_string_pretty(view).map(|json| json + "\n").map_err(|error| broken(error.to_string()))
        }
        Some(Form::Yaml) => serde_saphyr::to_string(view).map_err(|error| broken(error.to_string())),
    }
}
