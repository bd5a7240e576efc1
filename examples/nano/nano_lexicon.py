"""The words of the micro-language in English, German, Spanish and French.

A noun has a gender in three of the languages, and a colour agrees with it, so every entry gives the forms that the
sentences of `nano_grammar` need.
"""

from typing import NamedTuple

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French"}

NAMES = (
    "Anna",
    "Tom",
    "Maria",
    "Peter",
    "Laura",
    "David",
    "Sarah",
    "Paul",
    "Emma",
    "Mark",
    "Julia",
    "Jack",
    "Linda",
    "Robert",
    "Nina",
    "Oscar",
)

NUMBERS = {
    "en": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "de": ("ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    "es": ("un", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez", "once", "doce"),
    "fr": ("un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze", "douze"),
}
DIGITS = ("zero", *NUMBERS["en"][:9])


class Verb(NamedTuple):
    """The third person singular in four languages, and the English base form."""

    base: str
    en: str
    de: str
    es: str
    fr: str


VERBS = (
    Verb("buy", "buys", "kauft", "compra", "achète"),
    Verb("see", "sees", "sieht", "ve", "voit"),
    Verb("find", "finds", "findet", "encuentra", "trouve"),
    Verb("bring", "brings", "bringt", "trae", "apporte"),
    Verb("sell", "sells", "verkauft", "vende", "vend"),
    Verb("want", "wants", "möchte", "quiere", "veut"),
    Verb("have", "has", "hat", "tiene", "a"),
    Verb("paint", "paints", "malt", "pinta", "peint"),
    Verb("wash", "washes", "wäscht", "lava", "lave"),
    Verb("carry", "carries", "trägt", "lleva", "porte"),
)


class Request(NamedTuple):
    """An imperative."""

    en: str
    de: str
    es: str
    fr: str


REQUESTS = (
    Request("buy", "kauf", "compra", "achète"),
    Request("find", "finde", "encuentra", "trouve"),
    Request("bring", "bring", "trae", "apporte"),
    Request("sell", "verkaufe", "vende", "vends"),
    Request("paint", "male", "pinta", "peins"),
    Request("wash", "wasch", "lava", "lave"),
)


class Colour(NamedTuple):
    """English; the German stem; Spanish and French masculine and feminine, singular and plural."""

    en: str
    de: str
    es: tuple[str, str, str, str]
    fr: tuple[str, str, str, str]


COLOURS = (
    Colour("red", "rot", ("rojo", "roja", "rojos", "rojas"), ("rouge", "rouge", "rouges", "rouges")),
    Colour("blue", "blau", ("azul", "azul", "azules", "azules"), ("bleu", "bleue", "bleus", "bleues")),
    Colour("green", "grün", ("verde", "verde", "verdes", "verdes"), ("vert", "verte", "verts", "vertes")),
    Colour(
        "yellow", "gelb", ("amarillo", "amarilla", "amarillos", "amarillas"), ("jaune", "jaune", "jaunes", "jaunes")
    ),
    Colour("black", "schwarz", ("negro", "negra", "negros", "negras"), ("noir", "noire", "noirs", "noires")),
    Colour("white", "weiß", ("blanco", "blanca", "blancos", "blancas"), ("blanc", "blanche", "blancs", "blanches")),
    Colour("brown", "braun", ("marrón", "marrón", "marrones", "marrones"), ("marron", "marron", "marron", "marron")),
    Colour("grey", "grau", ("gris", "gris", "grises", "grises"), ("gris", "grise", "gris", "grises")),
)


class Noun(NamedTuple):
    """Singular and plural in four languages, with the gender where it decides other words."""

    en: tuple[str, str]
    de: tuple[str, str, str]
    es: tuple[str, str, str]
    fr: tuple[str, str, str]


NOUNS = (
    Noun(("apple", "apples"), ("m", "Apfel", "Äpfel"), ("f", "manzana", "manzanas"), ("f", "pomme", "pommes")),
    Noun(("book", "books"), ("n", "Buch", "Bücher"), ("m", "libro", "libros"), ("m", "livre", "livres")),
    Noun(("cup", "cups"), ("f", "Tasse", "Tassen"), ("f", "taza", "tazas"), ("f", "tasse", "tasses")),
    Noun(("car", "cars"), ("n", "Auto", "Autos"), ("m", "coche", "coches"), ("f", "voiture", "voitures")),
    Noun(("chair", "chairs"), ("m", "Stuhl", "Stühle"), ("f", "silla", "sillas"), ("f", "chaise", "chaises")),
    Noun(("table", "tables"), ("m", "Tisch", "Tische"), ("f", "mesa", "mesas"), ("f", "table", "tables")),
    Noun(("dog", "dogs"), ("m", "Hund", "Hunde"), ("m", "perro", "perros"), ("m", "chien", "chiens")),
    Noun(("cat", "cats"), ("f", "Katze", "Katzen"), ("m", "gato", "gatos"), ("m", "chat", "chats")),
    Noun(("hat", "hats"), ("m", "Hut", "Hüte"), ("m", "sombrero", "sombreros"), ("m", "chapeau", "chapeaux")),
    Noun(("shirt", "shirts"), ("n", "Hemd", "Hemden"), ("f", "camisa", "camisas"), ("f", "chemise", "chemises")),
    Noun(("flower", "flowers"), ("f", "Blume", "Blumen"), ("f", "flor", "flores"), ("f", "fleur", "fleurs")),
    Noun(("key", "keys"), ("m", "Schlüssel", "Schlüssel"), ("f", "llave", "llaves"), ("f", "clé", "clés")),
    Noun(("ball", "balls"), ("m", "Ball", "Bälle"), ("f", "pelota", "pelotas"), ("m", "ballon", "ballons")),
    Noun(("pencil", "pencils"), ("m", "Stift", "Stifte"), ("m", "lápiz", "lápices"), ("m", "crayon", "crayons")),
    Noun(("box", "boxes"), ("f", "Kiste", "Kisten"), ("f", "caja", "cajas"), ("f", "boîte", "boîtes")),
    Noun(("bag", "bags"), ("f", "Tasche", "Taschen"), ("f", "bolsa", "bolsas"), ("m", "sac", "sacs")),
    Noun(("bottle", "bottles"), ("f", "Flasche", "Flaschen"), ("f", "botella", "botellas"), ("f", "bouteille", "bouteilles")),
    Noun(("shoe", "shoes"), ("m", "Schuh", "Schuhe"), ("m", "zapato", "zapatos"), ("f", "chaussure", "chaussures")),
    Noun(("bird", "birds"), ("m", "Vogel", "Vögel"), ("m", "pájaro", "pájaros"), ("m", "oiseau", "oiseaux")),
    Noun(("lamp", "lamps"), ("f", "Lampe", "Lampen"), ("f", "lámpara", "lámparas"), ("f", "lampe", "lampes")),
    Noun(("coat", "coats"), ("m", "Mantel", "Mäntel"), ("m", "abrigo", "abrigos"), ("m", "manteau", "manteaux")),
    Noun(("clock", "clocks"), ("f", "Uhr", "Uhren"), ("m", "reloj", "relojes"), ("f", "horloge", "horloges")),
    Noun(("letter", "letters"), ("m", "Brief", "Briefe"), ("f", "carta", "cartas"), ("f", "lettre", "lettres")),
    Noun(("bed", "beds"), ("n", "Bett", "Betten"), ("f", "cama", "camas"), ("m", "lit", "lits")),
    Noun(("horse", "horses"), ("n", "Pferd", "Pferde"), ("m", "caballo", "caballos"), ("m", "cheval", "chevaux")),
    Noun(("spoon", "spoons"), ("m", "Löffel", "Löffel"), ("f", "cuchara", "cucharas"), ("f", "cuillère", "cuillères")),
    Noun(("knife", "knives"), ("n", "Messer", "Messer"), ("m", "cuchillo", "cuchillos"), ("m", "couteau", "couteaux")),
    Noun(("plate", "plates"), ("m", "Teller", "Teller"), ("m", "plato", "platos"), ("f", "assiette", "assiettes")),
)  # fmt: skip


class Phrase(NamedTuple):
    """An adverbial in four languages."""

    en: str
    de: str
    es: str
    fr: str


PLACES = (
    Phrase("in the kitchen", "in der Küche", "en la cocina", "dans la cuisine"),
    Phrase("in the garden", "im Garten", "en el jardín", "dans le jardin"),
    Phrase("in the park", "im Park", "en el parque", "dans le parc"),
    Phrase("at the station", "am Bahnhof", "en la estación", "à la gare"),
    Phrase("at school", "in der Schule", "en la escuela", "à l'école"),
    Phrase("at the market", "auf dem Markt", "en el mercado", "au marché"),
    Phrase("in the office", "im Büro", "en la oficina", "au bureau"),
    Phrase("in the hotel", "im Hotel", "en el hotel", "à l'hôtel"),
    Phrase("at the beach", "am Strand", "en la playa", "à la plage"),
    Phrase("in the library", "in der Bibliothek", "en la biblioteca", "à la bibliothèque"),
    Phrase("in the city", "in der Stadt", "en la ciudad", "en ville"),
    Phrase("at home", "zu Hause", "en casa", "à la maison"),
)
TIMES = (
    Phrase("today", "heute", "hoy", "aujourd'hui"),
    Phrase("tomorrow", "morgen", "mañana", "demain"),
    Phrase("in the morning", "am Morgen", "por la mañana", "le matin"),
    Phrase("in the evening", "am Abend", "por la tarde", "le soir"),
    Phrase("at night", "in der Nacht", "por la noche", "la nuit"),
    Phrase("on Monday", "am Montag", "el lunes", "lundi"),
    Phrase("on Tuesday", "am Dienstag", "el martes", "mardi"),
    Phrase("on Wednesday", "am Mittwoch", "el miércoles", "mercredi"),
    Phrase("on Thursday", "am Donnerstag", "el jueves", "jeudi"),
    Phrase("on Friday", "am Freitag", "el viernes", "vendredi"),
    Phrase("on Saturday", "am Samstag", "el sábado", "samedi"),
    Phrase("on Sunday", "am Sonntag", "el domingo", "dimanche"),
)

__all__ = [
    "COLOURS",
    "DIGITS",
    "LANGUAGES",
    "NAMES",
    "NOUNS",
    "NUMBERS",
    "PLACES",
    "REQUESTS",
    "TIMES",
    "VERBS",
    "Colour",
    "Noun",
    "Phrase",
    "Request",
    "Verb",
]
