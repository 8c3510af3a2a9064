//! Texts that have nothing to do with software, and ingested files.

use super::extend;
use crate::task::generator::draw::Draw;

/// The beginning of an ingested file.
pub fn ingest(draw: &mut Draw, target: usize) -> String {
    let head = draw.pick(&[
        "File: {path}\nSize: {size}\n\n",
        "Ingested {path} ({int} lines, {size})\n",
        "{=Created|Modified|Saved}: {path} at {time}\n",
        "# {Noun} {noun}\n\n",
        "---\ntitle: {Noun} {noun}\nauthor: {person}\ndate: {date}\n---\n\n",
    ]);
    let text = draw.fill(head);
    let says = [
        "The {np} {verb}s {nouns} {=for|from|of} {city} {=since|in|until} {date}.",
        "## {Noun} {nouns}\n",
        "{=Install|Run|Call} `{fn} {flag}` {=before|after} {np}.",
        "{person} ({mail}) {=maintains|wrote|owns} {id}.",
        "{=Requires|Needs|Tested with} {tool} {ver} {=or|and} {tool} {ver}.",
        "A {adj} {noun} {=may|must|can} {verb} {int} {nouns}, {=but|and} {=no|every} {noun} {verb}s {np}.",
        "{=Table|Figure|Chapter|Section} {small}: {np} {=by|per} {noun}, {num}.",
        "- [{np}]({url})",
        "{Noun},{noun},{fn}\n{str},{int},{dec}\n{str},{int},{dec}",
        "\"{np} {=is|was} {adj},\" {=says|wrote} {first}.",
    ];
    let until = target.max(text.len() + 20);
    let separator = draw.pick(&[" ", "\n", "\n\n"]);
    let mut body = String::new();
    extend(draw, &mut body, &says, separator, until - text.len());
    text + &body
}

/// Recipes.
pub fn recipe(draw: &mut Draw, target: usize) -> String {
    const FOODS: &[&str] = &[
        "rye flour",
        "olive oil",
        "red lentils",
        "butter",
        "brown sugar",
        "smoked paprika",
        "goat cheese",
        "basmati rice",
        "leeks",
        "dark chocolate",
        "oat milk",
        "garlic",
        "fresh thyme",
        "cod fillet",
        "chickpeas",
        "honey",
        "ginger",
        "beetroot",
        "eggs",
        "walnuts",
        "miso paste",
        "coriander",
        "yeast",
        "cream",
        "mushrooms",
        "lemon zest",
        "barley",
        "tofu",
        "parsnips",
        "apricots",
    ];
    let mut text = draw
        .fill("{first}'s {adj} {noun} {=soup|cake|bread|stew|salad|pie|curry}, {small} {=servings|pieces}\n");
    while text.len() < target {
        let food = draw.from(FOODS);
        let step = draw.pick(&[
            "- {int} {=g|ml|grams|cups|tablespoons} FOOD",
            "{=Mix|Stir|Chop|Roast|Simmer|Fold in} the FOOD {=for|about} {small} minutes {=until|so that} {adj}",
            "Bake FOOD at {int} °C {=for|on} {small} min, {~with|without} {np}",
            "{=Serve|Cover|Rest} with FOOD {=and|or} a {adj} {noun} from {city}",
        ]);
        text.push_str(&draw.fill(step).replace("FOOD", &food));
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Law, sport, travel, medicine, money: clauses and reports.
pub fn contract(draw: &mut Draw, target: usize) -> String {
    let says = [
        "§ {small} {Noun}: the {noun} {=shall|may|must} {~pay|receive} {num} euros {=within|after} {small} days.",
        "{=The tenant|The seller|The licensee} {person} {=shall|must} {verb} the {np} {=by|before} {date}.",
        "Clause {small}.{small}: {np} {~includes|excludes} {nouns} {=up to|of} {num} {=per|a} year.",
        "{city} {~won|lost} {small}:{small} against {city} {=after|despite} a {adj} {noun} by {person}.",
        "Patient {str}, {small} years: {np} {dec} mg {=twice|once} a day, {noun} {~improved|worse}.",
        "{=Train|Flight|Ferry} {str} {=leaves|reaches} {city} at {time}, {=seat|gate|platform} {small}.",
        "{=Invoice|Order|Parcel} {str} of {date}: {int} {nouns} at {dec} EUR, {=total|tax} {dec}.",
        "{=Signed|Agreed|Witnessed} in {city} on {date} by {person} and {person}.",
        "The {adj} {noun} of {city} {=measures|weighs|costs} {num}, {=says|according to} {person}.",
        "{=Termination|Liability|Warranty} {=needs|requires} {small} weeks' notice to {mail}.",
    ];
    let mut text = String::new();
    let separator = draw.pick(&[" ", "\n"]);
    extend(draw, &mut text, &says, separator, target);
    text
}
