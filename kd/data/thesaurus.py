"""The built-in thesaurus: English words that may stand for each other in a tweet or a review.

One string per kind, its groups between bars. The words of a group have the same strength, side and
inflection and go with the same words, so that a sentence feels the same with each of them. Words
that often mean something else are left out, and so are those that turn round or strengthen what
follows; whether "a" or "an" stands before is not looked at. This room knows no sentence, no label
and no chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SYNONYMS"]

_TABLES: dict[str, str] = {
    "praise": """
        terrific fantastic wonderful fabulous marvellous marvelous |
        excellent superb outstanding brilliant | amazing awesome | astonishing astounding |
        extraordinary exceptional | impressive remarkable | glorious splendid magnificent |
        stunning breathtaking | beautiful gorgeous | lovely delightful | charming enchanting |
        pleasant agreeable | enjoyable pleasurable | flawless faultless impeccable |
        memorable unforgettable | gripping riveting enthralling | absorbing engrossing |
        captivating spellbinding mesmerising mesmerizing | fascinating intriguing |
        hypnotic mesmeric | thrilling exhilarating electrifying |
        hilarious uproarious sidesplitting | amusing humorous | heartwarming uplifting |
        inspiring inspirational | motivating motivational | rewarding fulfilling |
        satisfying gratifying | soothing calming | energising energizing invigorating |
        energetic lively | cheerful cheery | delicious yummy scrumptious |
        tasty flavourful flavorful | mouthwatering appetising appetizing | stylish elegant |
        lavish sumptuous | appealing attractive | cute adorable | comfortable comfy |
        spotless immaculate | unspoilt unspoiled | timeless ageless | reliable dependable |
        sturdy robust | handy useful | clever smart | insightful perceptive |
        inventive imaginative | talented gifted | believable credible | genuine authentic |
        polite courteous | brave courageous | heroic valiant | fearless intrepid |
        unstoppable invincible | thrilled delighted overjoyed elated | stoked psyched |
        grateful thankful""",
    "blame": """
        awful terrible horrible dreadful | atrocious appalling abysmal |
        disastrous catastrophic calamitous | disappointing underwhelming | rubbish garbage trash |
        useless worthless | pointless senseless | pathetic pitiful | inept incompetent |
        stupid dumb | idiotic moronic | mindless brainless | ridiculous absurd ludicrous |
        annoying irritating | infuriating maddening | frustrating exasperating |
        boring tedious dull | tiresome wearisome | monotonous repetitive | ponderous plodding |
        meandering rambling | bland insipid | tepid lukewarm | lacklustre lackluster |
        forgettable unmemorable | uninspired unimaginative | derivative unoriginal |
        trite hackneyed banal | cheesy corny | sappy schmaltzy | maudlin mawkish |
        overwrought overblown | pretentious pompous | shallow superficial |
        implausible improbable | muddled jumbled | incoherent disjointed | uneven patchy |
        flawed imperfect | confusing bewildering | baffling perplexing puzzling |
        overrated overhyped | outdated outmoded | faulty defective | glitchy buggy |
        clunky cumbersome unwieldy | unreliable undependable | sloppy slapdash slipshod |
        shambolic disorganised disorganized | shabby tatty | ugly unsightly | smelly stinky |
        disgusting revolting repulsive | inedible uneatable | undercooked underdone |
        crowded overcrowded | unsafe hazardous | toxic poisonous | dismal dreary | bleak grim |
        joyless cheerless | unbearable intolerable insufferable | exhausting draining |
        thankless unrewarding | discouraging disheartening |
        demoralising demoralizing dispiriting | unwelcoming unfriendly | unfair unjust |
        illegal unlawful | disgraceful shameful | vulgar crass | reckless irresponsible |
        arrogant conceited | spineless gutless cowardly | fake phoney phony | scary frightening |
        sinister menacing | gruesome grisly | horrific horrifying | heartbreaking heartrending |
        miserable wretched | tired weary | lonely lonesome | grumpy grouchy cranky |
        jealous envious | baffled bewildered perplexed | scared frightened | terrified petrified""",
    "other adjectives": """
        okay ok alright | huge massive | enormous immense colossal | tiny minuscule |
        weird strange | unusual uncommon | quirky offbeat | zany wacky | whimsical fanciful |
        crazy insane | mysterious enigmatic | modern contemporary | famous renowned |
        crucial vital | speedy rapid | eternal everlasting | expensive pricey |
        affordable inexpensive | wealthy affluent | unemployed jobless | cloudy overcast |
        soaked drenched | sleepy drowsy | starving famished""",
    "verbs": """
        loves adores | loved adored | loathe despise detest | hates loathes despises detests |
        hated loathed despised detested | amaze astonish astound | amazes astonishes astounds |
        amazed astonished astounded | entertain amuse | entertains amuses | entertained amused |
        annoy irritate | annoys irritates | annoyed irritated | smile grin | smiles grins |
        smiled grinned | smiling grinning | cried wept | weeping sobbing | shouted yelled |
        shouting yelling | screaming shrieking | praised lauded | clapped applauded |
        mocked ridiculed | cuddle snuggle | thinks reckons | ponder contemplate | seems appears |
        begins starts | trying attempting | persuade convince | persuaded convinced |
        replied responded | replying responding | allows permits | allowed permitted |
        chosen selected | buy purchase | buys purchases | bought purchased | buying purchasing |
        refunded reimbursed | built constructed | rebuilt reconstructed | destroy demolish |
        destroyed demolished | destroying demolishing | ruined wrecked | disappear vanish |
        disappears vanishes | disappeared vanished | disappearing vanishing | depict portray |
        depicts portrays | depicted portrayed | depicting portraying | arrested detained |
        jailed imprisoned | nailed aced""",
    "people": """
        everyone everybody | someone somebody | anyone anybody | kid child | kids children |
        teenagers teens | mum mom mother | mums moms | dad father | grandma granny grandmother |
        grandpa grandad granddad grandfather | friend pal | friends pals | flatmate roommate |
        colleague coworker | colleagues coworkers | singer vocalist | singers vocalists |
        celebrity celeb | celebrities celebs | champion champ | goalkeeper goalie | referee ref |
        filmmaker moviemaker | filmmakers moviemakers | screenwriter scriptwriter |
        screenwriters scriptwriters | moviegoers filmgoers | reviewer critic |
        journalist reporter | journalists reporters | lawyers attorneys | soldiers troops |
        protesters demonstrators | activist campaigner | activists campaigners | enemy foe |
        enemies foes | idiot moron imbecile | idiots morons imbeciles | puppy pup""",
    "things": """
        film movie | films movies | screenplay script | screenplays scripts | plot storyline |
        jokes gags | cinematography camerawork | depiction portrayal | masterpiece masterwork |
        songs tunes | concert gig | concerts gigs | television telly tv | photo photograph |
        photos photographs | images pictures | ad advert advertisement |
        ads adverts advertisements | info information | stats statistics | passcode password |
        controller gamepad | bike bicycle | bikes bicycles | motorbike motorcycle |
        plane airplane aeroplane | planes airplanes aeroplanes | taxi cab | tram streetcar |
        highway motorway freeway | campsite campground | backpack rucksack | timetable schedule |
        restaurant eatery | dinner supper | burger hamburger | vegetables veggies |
        barbecue barbeque bbq | booze liquor | sofa couch settee | fridge refrigerator |
        toilet loo | shops stores | companies firms | prison jail | skills abilities |
        mistake error | mistakes errors | flaws shortcomings | letdown disappointment |
        disaster catastrophe calamity | fiasco debacle | nonsense hogwash | stupidity idiocy |
        boredom tedium | sadness sorrow | affection fondness | courage bravery | earthquake quake |
        fog mist | lots loads""",
    "times": """
        monday mon | tuesday tues | thursday thurs | friday fri | february feb | august aug |
        september sept | october oct | november nov | december dec | christmas xmas | noon midday |
        sunset sundown | minutes mins""",
    "spellings": """
        apologise apologize | apologised apologized | behaviour behavior | blonde blond |
        burnt burned | cancelled canceled | centre center | colour color | colours colors |
        colourful colorful | cosy cozy | defence defense | dialogue dialog | doughnut donut |
        doughnuts donuts | dreamt dreamed | favour favor | favourite favorite |
        favourites favorites | flavour flavor | grey gray | honour honor | honoured honored |
        humour humor | jewellery jewelry | lasagne lasagna | learnt learned | neighbour neighbor |
        neighbours neighbors | neighbourhood neighborhood | offence offense | organise organize |
        organised organized | pyjamas pajamas | realise realize | realised realized |
        realising realizing | recognise recognize | recognised recognized | rumour rumor |
        rumours rumors | sceptical skeptical | sombre somber | theatre theater |
        theatres theaters | travelled traveled | travelling traveling | whisky whiskey |
        yoghurt yogurt""",
    "adverbs": """
        maybe perhaps | honestly frankly | certainly definitely | basically essentially |
        usually normally | often frequently | sometimes occasionally | constantly continually |
        immediately instantly | quickly swiftly rapidly | originally initially |
        afterwards afterward | anyway anyhow | exactly precisely | roughly approximately |
        mostly mainly | partly partially | luckily fortunately thankfully |
        unfortunately sadly regrettably | deliberately intentionally purposely |
        accidentally inadvertently | allegedly reportedly""",
    "connectives": """
        until till | among amongst | amid amidst | towards toward | beneath underneath |
        nevertheless nonetheless | therefore consequently""",
    "exclamations": """
        hello hi | goodbye farewell | congratulations congrats | yep yup | wow whoa |
        yay hooray hurray | oops whoops | lol haha | hmm hm | imo imho""",
}
_GROUPS = [group.split() for table in _TABLES.values() for group in table.split("|")]

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {word: tuple(other for other in group if other != word) for group in _GROUPS for word in group}
)
"""What each word may become, in lower case."""
