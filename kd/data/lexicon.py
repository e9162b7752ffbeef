"""The words of the built-in corpus: topics, opinions, moods and marks; `sample` joins them.

One string per list, its entries between bars. Every adjective of a topic fits every noun of that
topic, and every event is a whole clause, so that each combination reads like a tweet. `{day}`,
`{hour}`, `{place}` and `{number}` are filled when a text is drawn. This room knows no class, no
split and no grammar.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIDED_WORDS", "TOPICS", "WORDS", "Topic"]


def _list(entries: str) -> tuple[str, ...]:
    """Return the entries of a table, which stand between bars."""
    return tuple(" ".join(entry.split()) for entry in entries.split("|"))


@dataclass(frozen=True, slots=True)
class Topic:
    """What people tweet about one subject.

    Args:
        name: Its hashtag, without the mark.
        determiners: Words that may stand before its nouns.
        nouns: What can be praised or blamed, in the singular.
        good: Adjectives of praise for any of its nouns.
        bad: Adjectives of blame for any of its nouns.
        wins: Events that please, as clauses.
        losses: Events that annoy, as clauses.
        facts: Clauses without a feeling.
        rivals: Pairs `now > before`, for comparisons.
    """

    name: str
    determiners: tuple[str, ...]
    nouns: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    wins: tuple[str, ...]
    losses: tuple[str, ...]
    facts: tuple[str, ...]
    rivals: tuple[tuple[str, str], ...]


def _topic(name: str, *tables: str) -> Topic:
    """Return a topic from its tables, in the order of the fields."""
    *lists, rivals = (_list(table) for table in tables)
    determiners, nouns, good, bad, wins, losses, facts = lists
    pairs = tuple((now, before) for now, before in (pair.split(" > ") for pair in rivals))
    return Topic(name, determiners, nouns, good, bad, wins, losses, facts, pairs)


TOPICS: tuple[Topic, ...] = (
    _topic(
        "phones",
        "the | this | my",
        "phone | battery | camera | screen | charger | keyboard | tablet | app | speaker",
        """fast | reliable | sturdy | smooth | responsive | clever | handy | polished |
        user-friendly""",
        """slow | flaky | flimsy | laggy | buggy | clunky | glitchy | overpriced | outdated""",
        """the update fixed every bug I had | my phone survived a fall down the stairs |
        the shop replaced my charger for free | the battery lasted {number} hours |
        I got my lost photos back""",
        """my phone died after {number} minutes | the screen cracked on day one |
        the update wiped all my photos | support hung up on me twice |
        the app freezes every time I open it""",
        """the new model comes in {number} colours | the update arrives on {day} |
        the phone shop in {place} opens at {hour} | my contract ends on {day} |
        the app asks for a passcode after {number} minutes""",
        """this phone > my old one | the new app > the old version | this update > the last one |
        the new keyboard > the previous one""",
    ),
    _topic(
        "foodie",
        "the | this | that",
        """pizza | soup | curry | coffee | breakfast | burger | menu | cake | noodle place |
        new cafe | lasagne""",
        """delicious | tasty | fresh | juicy | moreish | mouthwatering | yummy | filling |
        flavourful""",
        """bland | stale | soggy | greasy | tasteless | burnt | undercooked | inedible | watery""",
        """the waiter gave us a free dessert | I went back for thirds |
        the chef in {place} nailed it | dinner arrived in {number} minutes |
        my first loaf rose beautifully""",
        """we waited {number} minutes for a starter | I found a hair in my salad |
        they forgot half of our order | the kitchen in {place} ran out of everything |
        I was ill all night after dinner""",
        """the cafe in {place} opens at {hour} | lunch is served until {hour} |
        the recipe needs {number} grams of flour | the market moves to {place} on {day} |
        I am having soup for dinner""",
        """this menu > the old one | the new bakery > the one it replaced |
        today's curry > last week's | my own bread > the shop's""",
    ),
    _topic(
        "films",
        "the | this | that",
        """film | plot | ending | soundtrack | trailer | sequel | script | finale | documentary |
        opening scene | series""",
        """gripping | moving | hilarious | thrilling | unforgettable | original | captivating |
        heartwarming | suspenseful""",
        """predictable | tedious | cheesy | pointless | forgettable | confusing | shallow |
        unwatchable | overlong""",
        """the whole cinema stood up and clapped | I laughed until I cried |
        we watched {number} episodes in one go | the twist gave me goosebumps |
        the director finally got that award""",
        """I fell asleep after {number} minutes | half the room walked out |
        they ruined my favourite character | I want those {number} minutes of my life back |
        they cancelled my favourite series""",
        """the film starts at {hour} | the series returns on {day} | it runs for {number} minutes |
        they are filming in {place} until {day} | season {number} is on the telly tonight""",
        """this sequel > the first part | the new season > the last one | the film > the book |
        this version > the original""",
    ),
    _topic(
        "weather",
        "the | this | today's",
        "weather | sky | sunset | breeze | morning air | forecast | view | temperature | light",
        """glorious | mild | gentle | pleasant | refreshing | beautiful | cheerful | gorgeous |
        dreamy | balmy""",
        """grim | dreary | bleak | murky | gloomy | nasty | bitter | depressing | dismal |
        unbearable""",
        """the sun came out just in time | we got to eat outside in {place} |
        the fog lifted and we saw the sea | the snow gave us a day off |
        the heatwave finally broke""",
        """the storm took our fence down | it rained on our picnic |
        I got soaked on the way to {place} | hail ruined all my tomatoes |
        we lost power for {number} hours""",
        """it is {number} degrees in {place} | the sun sets at {hour} |
        rain is forecast for {day} | the clocks change on {day} |
        the wind is coming from the west""",
        """this summer > the last one | the weather in {place} > the weather here |
        today > yesterday | this winter > the one before""",
    ),
    _topic(
        "commute",
        "the | this | my",
        """train | bus | tram | ride | commute | station | ticket machine | night bus | bike lane |
        timetable | driver""",
        """punctual | quick | comfortable | spotless | friendly | efficient | dependable |
        painless""",
        """late | filthy | overcrowded | chaotic | stuffy | unreliable | rude | smelly | unsafe""",
        """I got a seat by the window | we arrived {number} minutes early |
        a stranger paid for my ticket | the bus waited for me |
        the night train to {place} is back""",
        """my train to {place} was cancelled | I missed my connection by one minute |
        we stood still for {number} minutes | the doors closed in my face |
        someone stole my bike""",
        """the bus to {place} leaves at {hour} | the line is being rebuilt until {day} |
        platform {number} is for trains to {place} | tickets are sold from {hour} |
        I am on the train to {place}""",
        """the new timetable > the old one | the tram > the bus | this route > my usual one |
        the bike > the car""",
    ),
    _topic(
        "football",
        "the | this | our",
        """team | coach | match | defence | first half | goalkeeper | season | new striker |
        performance | captain""",
        """unstoppable | heroic | sharp | outstanding | inspired | fearless | disciplined |
        electric""",
        """sloppy | toothless | lazy | clueless | embarrassing | shambolic | spineless |
        lifeless""",
        """we won in the last minute | our keeper saved {number} shots |
        we are going up | the kids from {place} beat the champions |
        our captain signed for {number} more years""",
        """we lost at home again | the referee robbed us | we threw away a three goal lead |
        our best player is out until {day} | we went down without a fight""",
        """kick-off is at {hour} | we play {place} on {day} | the squad has {number} players |
        training moves to {place} next week | the draw takes place on {day}""",
        """this team > last year's | the new coach > the old one | the second half > the first |
        the women's match > the men's""",
    ),
    _topic(
        "worklife",
        "the | this | our",
        """meeting | office | new boss | project | schedule | workshop | job | deadline | shift |
        presentation | interview""",
        """productive | rewarding | flexible | supportive | motivating | fair | inspiring |
        stimulating |
        worthwhile""",
        """stressful | chaotic | exhausting | thankless | unfair | draining |
        toxic""",
        """I got the job | my boss gave me a raise | we finished {number} days early |
        I have {day} off | my whole team stayed to help me""",
        """they cut {number} jobs on our floor | my laptop ate the report |
        I have to work on {day} again | they gave my promotion to someone else |
        my holiday request was refused""",
        """the meeting starts at {hour} | the report is due on {day} |
        our office moves to {place} | there are {number} people on the call |
        I am working from {place} on {day}""",
        """the new office > the old one | this job > my last one | this shift > the early one |
        our new schedule > the old plan""",
    ),
    _topic(
        "nowplaying",
        "the | this | that",
        """album | song | concert | chorus | guitar solo | playlist | gig | remix | singer | band |
        new single""",
        """catchy | groovy | uplifting | soulful | hypnotic | powerful | addictive | soothing |
        timeless""",
        """repetitive | whiny | tuneless | soulless | overproduced | grating | dull |
        uninspired | irritating""",
        """they played my favourite song | I got front row tickets |
        the crowd in {place} sang every word | I have had it on repeat for {number} hours |
        the drummer threw me a stick""",
        """the sound broke down after {number} songs | they cancelled the show in {place} |
        the singer forgot the words | my ticket turned out to be fake |
        we could not see a thing from our seats""",
        """the album is out on {day} | doors open at {hour} | the tour starts in {place} |
        the record has {number} songs | they recorded it in {place}""",
        """the new album > the first one | the live version > the studio one |
        this cover > the original | the new singer > the old one""",
    ),
    _topic(
        "gaming",
        "the | this | that",
        """game | level | patch | multiplayer | boss fight | controller | tutorial | expansion |
        map | demo""",
        """fun | immersive | challenging | rewarding | stunning | creative | slick | absorbing""",
        """broken | unplayable | unfair | grindy | frustrating | unfinished | choppy""",
        """I finally beat the last boss | we won {number} rounds in a row |
        I found the secret level | my little brother let me win |
        the patch brought my favourite map back""",
        """the server kicked me out at the very end | my save file is gone |
        I lost {number} rounds in a row | cheaters ruined every match |
        the patch broke my favourite weapon""",
        """the patch is {number} gigabytes | the servers go down at {hour} |
        the game comes out on {day} | it has {number} levels | the final is held in {place}""",
        """this patch > the last one | the new map > the old one | the sequel > the first game |
        the handheld version > the one on my computer""",
    ),
    _topic(
        "shopping",
        "the | this | my",
        """parcel service | lamp | backpack | mattress | online shop | sofa |
        customer service | kettle | delivery""",
        """stylish | sturdy | reliable | elegant | flawless | quick | dependable""",
        """ugly | shoddy | useless | faulty | slow | clumsy | unreliable""",
        """my parcel came two days early | they refunded me within {number} minutes |
        I got the last one in the sale | everyone asks me where I got it |
        they sent me a spare for free""",
        """my parcel is lost somewhere near {place} | they charged me twice |
        the handle broke after {number} days | they sent me the wrong size again |
        the seller stopped answering""",
        """the sale starts on {day} | the parcel is due at {hour} | delivery takes {number} days |
        the shop moved to {place} | I ordered a lamp from {place}""",
        """the new jacket > my old one | this shop > the one in town | the new sofa > the last one |
        their own brand > the expensive one""",
    ),
    _topic(
        "travel",
        "the | this | our",
        """hotel | flight | beach | room | tour guide | hostel | campsite | museum | airport |
        breakfast buffet | ferry""",
        """charming | relaxing | clean | welcoming | breathtaking | peaceful | magical |
        unspoilt""",
        """dirty | noisy | shabby | overrated | crowded | miserable | unwelcoming""",
        """they upgraded us to a suite | we saw dolphins near {place} |
        our flight landed {number} minutes early | the whole village invited us to dinner |
        we had the beach to ourselves""",
        """they lost my suitcase in {place} | our flight was delayed by {number} hours |
        there were bugs in our bed | they gave our room away | I got food poisoning in {place}""",
        """our flight leaves at {hour} | check-in is from {hour} | we are in {place} until {day} |
        the ferry to {place} takes {number} minutes | my passport runs out on {day}""",
        """this hotel > the last one | the train to {place} > the flight | the north > the south |
        the hostel > the expensive hotel""",
    ),
    _topic(
        "fitness",
        "the | this | my",
        """workout | run | yoga class | gym | trainer | swim | bike ride | warm-up | climbing wall |
        hike | training plan""",
        """energising | satisfying | invigorating | motivating | enjoyable | empowering |
        rewarding | addictive""",
        """pointless | boring | demoralising | joyless | tiresome | discouraging""",
        """I ran {number} minutes without a break | I beat my personal best |
        my knee feels as good as new | I finally managed a handstand |
        we reached the top before noon""",
        """I pulled a muscle after {number} minutes | my knee hurts again |
        someone took my shoes from the locker | I came last in the race |
        the gym charged me for {number} extra months""",
        """the gym opens at {hour} | the race is on {day} | the class takes {number} minutes |
        the course starts in {place} | I do the long run on {day}""",
        """the new gym > the old one | this plan > my last one | the morning class > the late one |
        running outside > the treadmill""",
    ),
)

_TABLES: dict[str, str] = {
    "copula": "is | was | is | seems | turned out to be",
    "is_not": "isn't | wasn't | is not | was not",
    "do_not": "don't | really don't | do not | didn't",
    "much": "is | is so much | is a lot | is way | was far",
    "tail": "any day | by a mile | every time | any day of the week",
    "okay": """okay | fine I guess | so-so | average | alright | nothing special | middling |
        about what I expected | the same as ever | standard | neither here nor there""",
    "okay_mood": "okay | alright | so-so | somewhere in between | the usual | meh",
    "degree": """so | very | really | absolutely | incredibly | extremely | totally | just |
        quite | pretty""",
    "scope": "really | exactly | all that | even remotely | in any way | the least bit",
    "time": """today | tonight | this morning | this evening | right now | this week | on {day} |
        these days | at the moment | since {day} | in {place} | after work | again""",
    "person": """my sister | my brother | my dad | my mum | my flatmate | everyone | some reviewer |
        my boss | a friend | the internet | my neighbour | my cousin | half of {place}""",
    "says": "says | thinks | reckons | swears | claims | keeps saying | told me | is sure",
    "agrees": """and I agree | spot on | and it's true | can confirm | couldn't agree more |
        they are not wrong | no argument from me | same here""",
    "differs": """I disagree | which is nonsense | and it's not true | couldn't disagree more |
        they are so wrong | not what I saw | don't believe a word | never heard such nonsense""",
    "unsure": """haven't tried it myself | will see for myself on {day} | no opinion yet |
        I will check on {day} | I don't know yet | not sure about that | any truth in it? |
        can anyone confirm?""",
    "opener": """honestly | ngl | ok so | lol | well | update: | hmm | fyi | so | right | tbh |
        psst | hey | hot take: | wow | omg | and | meanwhile""",
    "closer": """lol | tbh | imo | just saying | haha | ngl | anyway | end of story | that's it |
        that's the tweet | for real""",
    "first_name": """rainy | sleepy | captain | little | mister | urban | lucky | pixel | retro |
        lazy | happy | grumpy | sunny | salty | turbo | midnight""",
    "last_name": """otter | panda | teapot | badger | walker | baker | rocket | pigeon | muffin |
        cyclist | turtle | nomad | robot | pickle | falcon | biscuit""",
    "positive_tag": """love | blessed | winning | happy | bestdayever | recommended | goodvibes |
        joy""",
    "negative_tag": "fail | annoyed | disappointed | ugh | worstdayever | neveragain | fedup | sad",
    "neutral_tag": "today | weekend | news | question | mylife | thoughts | monday | random",
    "positive_emoji": "😍 | 😊 | 🎉 | 🔥 | 👍 | 💛 | 🥰 | 🙌 | 😁 | 🤩",
    "negative_emoji": "😡 | 😭 | 👎 | 😤 | 💔 | 😩 | 🤬 | 😞 | 😒 | 🤦",
    "neutral_emoji": "😂 | 🤔 | 👀 | 😅 | 🙃 | 🤷 | 📅 | 😐 | 🙄 | 😬",
    "day": "Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday",
    "hour": "7am | 8am | 9am | 9:30 | 10am | noon | 1pm | 2pm | 4pm | 5:30 | 6pm | 7:30 | 8pm",
    "place": """London | Leeds | Bristol | Cardiff | York | Dublin | Glasgow | Berlin | Lyon |
        Porto | Bergen | Vienna | Ghent | Turin""",
    "number": "2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 12 | 15 | 20 | 25 | 30 | 40 | 45 | 50 | 90",
}

_SIDED_TABLES: dict[str, tuple[str, str]] = {
    "adjective": (
        """awful | terrible | horrible | dreadful | disappointing | poor | rubbish | bad |
        annoying | hopeless""",
        """great | amazing | brilliant | fantastic | excellent | lovely | wonderful | perfect |
        good | impressive""",
    ),
    "predicate": (
        "a nightmare | a disgrace | a waste of time | a letdown | not my thing",
        "a delight | a dream | worth every minute | a pleasant surprise | just my thing",
    ),
    "verb": (
        "hate | dislike | regret | dread | loathe | despise",
        "love | enjoy | like | recommend | appreciate | admire",
    ),
    "attitude": (
        """can't stand | am fed up with | am so disappointed by | am sick of | am done with |
        could not be angrier about | can't stop moaning about""",
        """can't get enough of | am obsessed with | am so impressed by | am in love with |
        could not be happier with | am a big fan of | can't stop smiling about""",
    ),
    "mood": (
        """sad | tired | angry | lonely | stressed | anxious | miserable | gloomy | grumpy |
        worn out | awful | terrible | down in the dumps""",
        """happy | glad | excited | relaxed | proud | grateful | cheerful | calm | hopeful |
        thrilled | great | wonderful | on top of the world""",
    ),
}

WORDS: dict[str, tuple[str, ...]] = {name: _list(table) for name, table in _TABLES.items()}
"""Words that any topic may use, by name."""

SIDED_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    name: (_list(bad), _list(good)) for name, (bad, good) in _SIDED_TABLES.items()
}
"""Words that blame and words that praise, by name."""
