//! `why JOB`: why a job runs where it runs, or why it runs nowhere.

mod render;
mod view;

use tradewind_core::Clock;

pub use self::render::render;
pub use self::view::WhyView;
use crate::Trouble;
use crate::cli::{Form, WhyArgs};
use crate::connect::Connection;
use crate::screen::Screen;

/// Runs the command.
pub async fn run(
    connection: &Connection,
    args: &WhyArgs,
    form: Option<Form>,
    screen: Screen,
    clock: &dyn Clock,
) -> Result<(), Trouble> {
    let view = WhyView::of(&connection.job(&args.job).await?);
    screen.show(form, &view, |ink| render(&view, form == Some(Form::Wide), clock.now(), ink))
}
